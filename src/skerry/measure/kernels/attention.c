/* Softmax statistics of a block of logits [sample, head, query, key], one reading.

   Heads of inputs in parallel; rows one after the other: mask and maximum, then exponentials and their sums, then the weights are added
   to the columns. A row with a NaN or +inf logit is counted and left out. exp is a polynomial, relative error below 1e-6. */
#include "common.h"

#define FLUSH 32 /* rows whose weights are summed in float32 */

enum { NO_MASK, BOOL_MASK, FLOAT_MASK };

typedef struct {
    const float *logits;
    int64_t stride[3]; /* sample, head, query; keys are dense */
    int64_t num_samples, num_heads, num_queries, num_keys, first_query, is_causal, num_threads, mask_kind;
    const void *mask;
    int64_t mask_stride[4];
    const uint8_t *keep; /* [sample, keep_stride], 0 where padding; or null */
    int64_t keep_stride;
    const float *sink;   /* [head] or null */
    double softcap, hidden;
    const double *log_table; /* log(0), log(1), ... */
    /* added to */
    double *sums;        /* [4, head] */
    int64_t *counts;     /* [2, head] */
    int64_t *logit_count;
    double *logit_sums;  /* [4, head] */
    double *received;    /* [sample, head, out_keys] */
    int64_t *exposure;
    int64_t out_keys;
    char *scratch;
} Attention;

typedef struct { double sums[4], n, mean, m2; float low, high; int64_t rows, broken; } Head;
/* One row: what pass one finds and what pass two needs. */
typedef struct { float top, low; int64_t seen; } Shown;
typedef struct { double z, entropy_sum, s1, s2; } Softmax;

static int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }
static int64_t room(const Attention *a) { return 4 * padded(a->num_keys) * 4; }

int64_t skerry_attention_scratch(const Attention *a) {
    return 64 + a->num_samples * a->num_heads * (int64_t)sizeof(Head) + a->num_threads * room(a);
}

/* exp(x) for x <= 0: 2^n times a polynomial for the rest in [-1/2, 1/2]. */
INLINE vf vexp(vf x) {
    vf t = vmax(x, -87.0f + (vf){0}) * 1.44269504f, n = t + 12582912.0f;
    vi bits = (vi)n << 23;
    n -= 12582912.0f;
    vf f = t - n, p = 1.5403530e-4f + (vf){0};
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    return (vf)((vi)p + bits);
}
INLINE vf vcap(vf x, float cap) {
    /* tanh |y| = (1 - e) / (1 + e), e = exp(-2 |y|) */
    vf y = x * (1 / cap), e = vexp(-2 * vabs(y)), t = cap * (1 - e) / (1 + e);
    return vselect((vi)(y == y), (vf)((vi)t | ((vi)y & (int32_t)0x80000000)), y);
}

/* Where is one row's mask? */
typedef struct { const uint8_t *keep, *bools; const float *floats; int64_t step; } Mask;
static Mask mask_of(const Attention *a, int64_t s, int64_t h, int64_t q) {
    Mask m = {a->keep ? a->keep + s * a->keep_stride : 0, 0, 0, a->mask_stride[3]};
    int64_t at = s * a->mask_stride[0] + h * a->mask_stride[1] + q * a->mask_stride[2];
    if (a->mask_kind == BOOL_MASK) m.bools = (const uint8_t *)a->mask + at;
    if (a->mask_kind == FLOAT_MASK) m.floats = (const float *)a->mask + at;
    return m;
}
typedef uint8_t vb __attribute__((vector_size(16)));
INLINE vi true_lanes(const uint8_t *p, int64_t left) {
    vb b = {0};
    memcpy(&b, p, (size_t)(left < LANES ? left : LANES));
    return (vi)(__builtin_convertvector(b, vi) != 0);
}

/* Pass one of a row where keys may be hidden: hidden logits become -inf. `exposed` counts per key are added later, if the row is whole. */
static Shown show_masked(const Attention *a, const float *raw, int64_t n, Mask m, float *l) {
    vf top = -INFINITY + (vf){0}, low = INFINITY + (vf){0}, none = -INFINITY + (vf){0};
    vi seen = {0};
    for (int64_t j = 0; j < n; j += LANES) {
        int64_t left = n - j;
        vf v = load_some(raw + j, left, -INFINITY);
        vi shown = ~(vi)(v <= (float)a->hidden);
        if (a->softcap > 0) v = vcap(v, (float)a->softcap);
        if (m.keep) shown &= true_lanes(m.keep + j, left);
        if (m.bools) shown &= m.step ? true_lanes(m.bools + j, left) : (vi){0} - (m.bools[0] != 0);
        if (m.floats) {
            vf bias = m.step ? load_some(m.floats + j, left, -INFINITY) : m.floats[0] + (vf){0};
            shown &= ~(vi)(bias <= -5000.0f);
            v += bias;
        }
        v = vselect(shown & ~(vi)(v == none), v, none);
        shown = ~(vi)(v == none);
        if (left < LANES) for (int64_t i = left; i < LANES; i++) v[i] = -INFINITY, shown[i] = 0;
        top = vmax(v, top);
        low = vmin(vselect(shown, v, -none), low);
        seen -= shown;
        store(l + j, v);
    }
    return (Shown){vtop(top), vbottom(low), vsumi(seen)};
}

/* Pass one of a row in which all n keys are visible. */
static Shown show_all(const Attention *a, const float *raw, int64_t n, float *l) {
    vf top = -INFINITY + (vf){0}, low = INFINITY + (vf){0};
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        vf v = load(raw + j);
        if (a->softcap > 0) v = vcap(v, (float)a->softcap);
        top = vmax(v, top), low = vmin(v, low);
        store(l + j, v);
    }
    if (j < n) {
        vf v = load_some(raw + j, n - j, 0);
        if (a->softcap > 0) v = vcap(v, (float)a->softcap);
        vf high = v;
        for (int64_t i = n - j; i < LANES; i++) high[i] = -INFINITY, v[i] = INFINITY;
        top = vmax(high, top), low = vmin(v, low);
        store(l + j, high);
    }
    return (Shown){vtop(top), vbottom(low), n};
}

/* Pass two: exponentials about m, in place, and their sums. */
INLINE void exp_vector(float *l, float m, vf *z, vf *h, vf *s1, vf *s2, int some_hidden) {
    vf v = load(l), d = v - m, e = vexp(d);
    if (some_hidden) {
        vi shown = ~(vi)(v == -INFINITY);
        d = vselect(shown, d, (vf){0}), e = vselect(shown, e, (vf){0});
    }
    *z += e, *h += e * d, *s1 += d, *s2 += d * d;
    store(l, e);
}
static Softmax softmax(float *l, int64_t n, float m, int some_hidden) {
    vf z = {0}, h = {0}, s1 = {0}, s2 = {0};
    int64_t j = 0;
    if (!some_hidden)
        for (; j + LANES <= n; j += LANES) exp_vector(l + j, m, &z, &h, &s1, &s2, 0);
    for (; j < n; j += LANES) exp_vector(l + j, m, &z, &h, &s1, &s2, 1);
    return (Softmax){vsum(z), vsum(h), vsum(s1), vsum(s2)};
}

static void add_row(const Attention *a, Head *t, const Shown *r, const Softmax *x, float m, float sink) {
    double z = x->z, h = x->entropy_sum, n = (double)r->seen;
    if (a->sink) {
        double d = (double)sink - m, e = exp(d);
        z += e, h += e * d;
        t->sums[3] += e / z;
    }
    t->sums[0] += logf((float)z) - h / z;
    t->sums[1] += a->log_table[r->seen + (a->sink != 0)];
    t->sums[2] += (a->sink ? expf(r->top - m) : 1) / z;
    t->rows++;
    double mean = m + x->s1 / n, m2 = x->s2 - x->s1 * x->s1 / n, total = t->n + n, d = mean - t->mean;
    t->m2 += (m2 > 0 ? m2 : 0) + d * d * t->n * n / total;
    t->mean += d * n / total;
    t->n = total;
    t->low = r->low < t->low ? r->low : t->low, t->high = r->top > t->high ? r->top : t->high;
}

static void add_columns(float *column, const float *e, int64_t n, float factor) {
    for (int64_t j = 0; j < n; j += LANES) store(column + j, load(column + j) + load(e + j) * factor);
}
static void flush(double *received, float *column, int64_t n) {
    for (int64_t j = 0; j < n; j++) received[j] += column[j], column[j] = 0;
}

static int64_t num_broken(const float *l, int64_t n) {
    int64_t num = 0;
    for (int64_t j = 0; j < n; j++) num += !is_finite(l[j]) && !(l[j] == -INFINITY);
    return num;
}

static void read_head(const Attention *a, int64_t s, int64_t h, Head *t, char *own) {
    int64_t keys = padded(a->num_keys), out = (s * a->num_heads + h) * a->out_keys;
    float *l = (float *)own, *column = l + keys;
    int32_t *seen = (int32_t *)(column + keys), *shown = seen + keys;
    int is_masked = a->mask_kind != NO_MASK || a->keep || a->hidden > -INFINITY;
    float sink = a->sink ? a->sink[h] : 0;
    *t = (Head){.low = INFINITY, .high = -INFINITY};
    memset(column, 0, (size_t)keys * 4), memset(seen, 0, (size_t)keys * 4);
    for (int64_t i = 0; i < a->num_queries; i++) {
        int64_t q = a->first_query + i, n = a->is_causal && q + 1 < a->num_keys ? q + 1 : a->num_keys;
        if (i % FLUSH == 0) flush(a->received + out, column, a->num_keys);
        if (a->keep && !a->keep[s * a->keep_stride + q]) continue;
        const float *raw = a->logits + s * a->stride[0] + h * a->stride[1] + i * a->stride[2];
        Mask mask = mask_of(a, s, h, q);
        int masked = is_masked;
        Shown r = masked ? show_masked(a, raw, n, mask, l) : show_all(a, raw, n, l);
        if (!masked && r.low == -INFINITY) masked = 1, r = show_masked(a, raw, n, mask, l);
        if (masked) for (int64_t j = 0; j < n; j += LANES) storei(shown + j, (vi)(load(l + j) == -INFINITY) + 1);
        if (r.seen == 0) continue;
        float m = a->sink && sink > r.top ? sink : r.top;
        /* A NaN reaches the sum of distances, an infinite logit makes it so. The exponentials overwrite l, so look first where it may be. */
        if (!is_finite(r.top)) { t->broken += num_broken(l, n); continue; }
        Softmax x = softmax(l, n, m, masked);
        if (!is_finite((float)x.s1)) {
            r = masked ? show_masked(a, raw, n, mask, l) : show_all(a, raw, n, l);
            t->broken += num_broken(l, n);
            continue;
        }
        add_row(a, t, &r, &x, m, sink);
        double z = x.z + (a->sink ? exp((double)sink - m) : 0);
        add_columns(column, l, n, (float)(1 / z));
        if (!masked) seen[n - 1]++;
        else if (is_masked) for (int64_t j = 0; j < n; j += LANES) storei(seen + j, loadi(seen + j) + loadi(shown + j));
        else for (int64_t j = 0; j < n; j++) a->exposure[out + j] += shown[j];
    }
    flush(a->received + out, column, a->num_keys);
    /* Unmasked rows see all keys up to their last: only that one was counted. */
    int64_t more = 0;
    for (int64_t j = a->num_keys - 1; j >= 0; j--) {
        more = is_masked ? seen[j] : more + seen[j];
        a->exposure[out + j] += more;
    }
}

static void join_heads(const Attention *a, const Head *heads) {
    int64_t num = a->num_heads;
    for (int64_t i = 0; i < a->num_samples * num; i++) {
        const Head *t = &heads[i];
        int64_t h = i % num;
        for (int k = 0; k < 4; k++) a->sums[k * num + h] += t->sums[k];
        a->counts[h] += t->rows, a->counts[num + h] += t->broken;
        if (t->n == 0) continue;
        double old = (double)a->logit_count[h], total = old + t->n, d = t->mean - a->logit_sums[h];
        a->logit_sums[h] += d * t->n / total;
        a->logit_sums[num + h] += t->m2 + d * d * old * t->n / total;
        double *low = a->logit_sums + 2 * num + h, *high = low + num;
        *low = t->low < *low ? t->low : *low, *high = t->high > *high ? t->high : *high;
        a->logit_count[h] += (int64_t)t->n;
    }
}

void skerry_attention_read(Attention *a) {
    char *base = (char *)(((uintptr_t)a->scratch + 63) & ~(uintptr_t)63), *own = base;
    base += a->num_threads * room(a);
    Head *heads = (Head *)base;
#pragma omp parallel for num_threads((int)a->num_threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < a->num_samples * a->num_heads; i++)
        read_head(a, i / a->num_heads, i % a->num_heads, &heads[i], own + THREAD * room(a));
    join_heads(a, heads);
}
