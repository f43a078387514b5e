/* One matrix, read once: the same statistics of its lines (along memory) and of its places (across lines).

   1. units of UNIT lines, in parallel, in tiles that stay in the cache: a pass along each line and a pass across the lines of a tile.
      Sums of powers are float32 over at most SEGMENT entries of a line or UNIT lines of a place, then double.
   2. blocks of 16 places, in parallel: units folded into float64 moments, in order.
   A line or place that met a non-finite value, left the range of float32 or lies far from zero (where sums about zero lose digits) is
   read again, slowly, in double. At most ROUND units are in hand at once. */
#include "common.h"

#define UNIT 128
#define TILE 8
#define SEGMENT 1024
#define ROUND 32
enum { LOW, HIGH, S1, S2, S3, S4, SIZE, PARTS };

typedef struct {
    const void *w;
    int64_t stride, num_lines, length, dtype, num_threads, top_k, nonfinite_k, every, turn, is_transposed;
    double bar;
    /* [line] and [place], added to; the strides are those of arrays [2 or 4, line] */
    int64_t line_stride, place_stride;
    int64_t *line_count;
    double *line_sums, *line_range, *line_abs;
    int64_t *place_count;
    double *place_sums, *place_range, *place_abs;
    int64_t *counts, *histogram, *used;
    uint32_t *tables; /* [thread, bucket], zero before and after */
    double *value;
    int64_t *value_row, *value_column, *num_values;
    int64_t *nonfinite_kind, *nonfinite_row, *nonfinite_column, *num_nonfinite;
    char *scratch;
} Weight;

typedef struct {
    List largest, nonfinite;
    int64_t zeros, nans, infs;
    uint32_t *table;
    float room[TILE * SEGMENT];
    uint16_t bucket[SEGMENT];
} Worker;

static int64_t padded(const Weight *a) { return (a->length + LANES - 1) / LANES * LANES; }

int64_t skerry_weight_scratch(const Weight *a) {
    return 64 + a->num_threads * (int64_t)sizeof(Worker) + ROUND * PARTS * padded(a) * 4;
}

typedef struct { double n, mean, m2, m3, m4, size; float low, high; } Careful;
/* Sums of the safe segments of a line, and what was read carefully of the others. */
typedef struct { double n, s[5]; float low, high; int is_broken; Careful rest; } LineSums;
typedef struct { vf low, high, s1, s2, s3, s4, size; vi zeros; } LineVectors;

INLINE void add_to_line(LineVectors *t, vf v, vf for_low, vf for_high) {
    vf size = vabs(v), v2 = v * v;
    t->low = vmin(for_low, t->low);
    t->high = vmax(for_high, t->high);
    t->size += size;
    t->s1 += v;
    t->s2 += v2;
    t->s3 += v2 * v;
    t->s4 += v2 * v2;
    t->zeros = vcount_zero(t->zeros, v, 1);
}

/* `ahead` is how far behind a row the next tile has it: fetched now, while memory would be idle. */
INLINE void across_vector(float *p, int64_t width, int64_t left, const float *const *rows, int64_t j, int64_t num, int is_first, int64_t ahead) {
    vf low = INFINITY + (vf){0}, high = -low, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, size = {0};
    if (!is_first) {
        low = load(p + LOW * width), high = load(p + HIGH * width), s1 = load(p + S1 * width), s2 = load(p + S2 * width);
        s3 = load(p + S3 * width), s4 = load(p + S4 * width), size = load(p + SIZE * width);
    }
    for (int64_t r = 0; r < num; r++) {
        vf v = load_some(rows[r] + j, left, 0), v2 = v * v;
        if (ahead) __builtin_prefetch(rows[r] + j + ahead, 0, 2);
        low = vmin(v, low);
        high = vmax(v, high);
        size += vabs(v);
        s1 += v;
        s2 += v2;
        s3 += v2 * v;
        s4 += v2 * v2;
    }
    store(p + LOW * width, low), store(p + HIGH * width, high), store(p + S1 * width, s1), store(p + S2 * width, s2);
    store(p + S3 * width, s3), store(p + S4 * width, s4), store(p + SIZE * width, size);
}
static void across(float *part, int64_t width, const float *const *rows, int64_t n, int64_t num, int is_first, int64_t ahead) {
    int64_t j = 0;
    if (ahead)
        for (; j + LANES <= n; j += LANES) across_vector(part + j, width, LANES, rows, j, num, is_first, ahead);
    else
        for (; j + LANES <= n; j += LANES) across_vector(part + j, width, LANES, rows, j, num, is_first, 0);
    if (j < n) across_vector(part + j, width, n - j, rows, j, num, is_first, 0);
}

/* Whether sums of powers about zero in float32 say enough about n finite values. */
INLINE int is_safe(double n, double s1, double s2, double s4) {
    if (s2 == 0 && s1 == 0 && s4 == 0) return 1;
    return s4 > 1e-32 && s4 < 1e37 && s1 * s1 <= 0.9 * n * s2;
}

static Careful careful(const Weight *a, int64_t line, int64_t place, int64_t num, int along) {
    Careful c = {0, 0, 0, 0, 0, 0, INFINITY, -INFINITY};
    int64_t first = line * a->stride + place, step = along ? 1 : a->stride;
    double sum = 0;
    for (int64_t i = 0; i < num; i++) {
        float v = value_at(a->w, first + i * step, (int)a->dtype);
        if (!is_finite(v)) continue;
        sum += v, c.n++, c.size += fabsf(v);
        c.low = v < c.low ? v : c.low, c.high = v > c.high ? v : c.high;
    }
    c.mean = c.n > 0 ? sum / c.n : 0;
    for (int64_t i = 0; i < num; i++) {
        float v = value_at(a->w, first + i * step, (int)a->dtype);
        if (!is_finite(v)) continue;
        double d = v - c.mean, d2 = d * d;
        c.m2 += d2, c.m3 += d2 * d, c.m4 += d2 * d2;
    }
    return c;
}

/* An entry of the lists, which order by row and column whatever lies along memory. */
INLINE Entry entry_at(const Weight *a, float size, float value, int64_t line, int64_t place, int64_t kind) {
    return (Entry){size, value, a->is_transposed ? place : line, a->is_transposed ? line : place, 0, kind};
}

static Careful pool_careful(Careful a, Careful b) {
    double n = a.n + b.n;
    if (a.n == 0 || b.n == 0) return a.n == 0 ? b : a;
    double mean = (a.n * a.mean + b.n * b.mean) / n, p = a.mean - mean, q = b.mean - mean, p2 = p * p, q2 = q * q;
    return (Careful){n, mean, a.m2 + b.m2 + a.n * p2 + b.n * q2, a.m3 + b.m3 + 3 * (p * a.m2 + q * b.m2) + a.n * p2 * p + b.n * q2 * q,
                     a.m4 + b.m4 + 4 * (p * a.m3 + q * b.m3) + 6 * (p2 * a.m2 + q2 * b.m2) + a.n * p2 * p2 + b.n * q2 * q2,
                     a.size + b.size, a.low < b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
}

static void along_segment(const Weight *a, LineSums *sums, int64_t *zeros, const float *x, int64_t n, int64_t line, int64_t first) {
    LineVectors t = {.low = INFINITY + (vf){0}, .high = -INFINITY + (vf){0}};
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        vf v = load(x + j);
        add_to_line(&t, v, v, v);
    }
    if (j < n) {
        add_to_line(&t, load_some(x + j, n - j, 0), load_some(x + j, n - j, INFINITY), load_some(x + j, n - j, -INFINITY));
        *zeros -= LANES - (n - j);
    }
    *zeros += vsumi(t.zeros);
    float sum[4];
    vsum4(sum, t.s1, t.s2, t.s3, t.s4);
    float low = vbottom(t.low), high = vtop(t.high);
    if (is_safe((double)n, sum[0], sum[1], sum[3])) {
        sums->n += (double)n, sums->s[4] += vsum(t.size);
        for (int k = 0; k < 4; k++) sums->s[k] += sum[k];
        sums->low = low < sums->low ? low : sums->low, sums->high = high > sums->high ? high : sums->high;
    } else {
        Careful c = careful(a, line, first, n, 1);
        sums->is_broken |= c.n < (double)n;
        sums->rest = pool_careful(sums->rest, c);
    }
}

static void find_nonfinite(const Weight *a, Worker *w, int64_t line) {
    for (int64_t j = 0; j < a->length; j++) {
        float v = value_at(a->w, line * a->stride + j, (int)a->dtype);
        if (is_finite(v)) continue;
        w->nans += is_nan(v), w->infs += !is_nan(v);
        list_add(&w->nonfinite, entry_at(a, 0, 0, line, j, !is_nan(v)));
    }
}

static void offer_line(const Weight *a, Worker *w, int64_t line) {
    float bar = (float)a->bar;
    for (int64_t j = 0; j < a->length; j += SEGMENT) {
        int64_t n = a->length - j < SEGMENT ? a->length - j : SEGMENT;
        const float *x = address(a->w, line * a->stride + j, (int)a->dtype);
        if (a->dtype != FLOAT32) widen(w->room, (const uint16_t *)x, n, (int)a->dtype), x = w->room;
        for (int64_t k = 0; k < n; k += LANES)
            for (uint32_t lanes = list_lanes(&w->largest, x + k, n - k, bar); lanes; lanes &= lanes - 1) {
                int64_t i = k + __builtin_ctz(lanes);
                if (is_finite(x[i])) list_add(&w->largest, entry_at(a, fabsf(x[i]), x[i], line, j + i, 0));
            }
    }
}

static void finish_line(const Weight *a, Worker *w, int64_t line, const LineSums *t) {
    double n = t->n, mean = n > 0 ? t->s[0] / n : 0, m2 = t->s[1] - mean * t->s[0];
    Careful c = {n, mean, m2 > 0 ? m2 : 0, t->s[2] - 3 * mean * t->s[1] + 2 * n * mean * mean * mean,
                 t->s[3] - 4 * mean * t->s[2] + 6 * mean * mean * t->s[1] - 3 * n * mean * mean * mean * mean, t->s[4], t->low, t->high};
    if (t->rest.n > 0) c = pool_careful(c, t->rest);
    if (t->is_broken) find_nonfinite(a, w, line);
    float size = -c.low > c.high ? -c.low : c.high;
    int64_t lines = a->line_stride;
    if (a->line_count[line] > 0)
        c = pool_careful((Careful){(double)a->line_count[line], a->line_sums[line], a->line_sums[lines + line], a->line_sums[2 * lines + line],
                                   a->line_sums[3 * lines + line], a->line_abs[line], (float)a->line_range[line], (float)a->line_range[lines + line]}, c);
    a->line_count[line] = (int64_t)c.n;
    a->line_sums[line] = c.mean, a->line_sums[lines + line] = c.m2;
    a->line_sums[2 * lines + line] = c.m3, a->line_sums[3 * lines + line] = c.m4 > 0 ? c.m4 : 0;
    a->line_range[line] = c.low, a->line_range[lines + line] = c.high, a->line_abs[line] = c.size;
    if (list_wants(&w->largest, size, (float)a->bar, a->is_transposed ? -1 : line, -1)) offer_line(a, w, line);
}

static void read_unit(const Weight *a, Worker *w, float *part, int64_t first) {
    int64_t num = a->num_lines - first < UNIT ? a->num_lines - first : UNIT, width = padded(a);
    LineSums sums[UNIT];
    for (int64_t r = 0; r < num; r++) sums[r] = (LineSums){.low = INFINITY, .high = -INFINITY};
    for (int64_t j = 0; j < a->length; j += SEGMENT) {
        int64_t n = a->length - j < SEGMENT ? a->length - j : SEGMENT;
        for (int64_t t = 0; t < num; t += TILE) {
            int64_t some = num - t < TILE ? num - t : TILE, turn = a->turn + j / 16;
            const float *rows[TILE];
            for (int64_t r = 0; r < some; r++) {
                const void *at = address(a->w, (first + t + r) * a->stride + j, (int)a->dtype);
                rows[r] = at;
                if (a->dtype != FLOAT32) widen(w->room + r * SEGMENT, at, n, (int)a->dtype), rows[r] = w->room + r * SEGMENT;
                along_segment(a, &sums[t + r], &w->zeros, rows[r], n, first + t + r, j);
                sketch_vectors(w->table, w->bucket, rows[r], n, a->every, turn + (first + t + r) / 16);
            }
            across(part + j, width, rows, n, some, t == 0, a->dtype == FLOAT32 && t + 2 * TILE <= num ? TILE * a->stride : 0);
        }
    }
    for (int64_t r = 0; r < num; r++) finish_line(a, w, first + r, &sums[r]);
}

/* Some units into a block of 16 places. */
static void fold(const Weight *a, const float *part, int64_t first, int64_t num_units, int64_t block) {
    int64_t width = padded(a), n = a->place_stride, j = block * LANES, used = a->length - j < LANES ? a->length - j : LANES;
    double count[LANES] = {0};
    for (int i = 0; i < used; i++) count[i] = (double)a->place_count[j + i];
    Moments all = {loadd(count, LANES), loadd(a->place_sums + j, used), loadd(a->place_sums + n + j, used),
                   loadd(a->place_sums + 2 * n + j, used), loadd(a->place_sums + 3 * n + j, used)};
    vf all_low = INFINITY + (vf){0}, all_high = -all_low;
    vd all_size = loadd(a->place_abs + j, used);
    for (int64_t u = 0; u < num_units; u++) {
        const float *p = part + u * PARTS * width + j;
        int64_t line = first + u * UNIT, num = a->num_lines - line < UNIT ? a->num_lines - line : UNIT;
        vf s1 = load(p + S1 * width), s2 = load(p + S2 * width), s4 = load(p + S4 * width), low = load(p + LOW * width), high = load(p + HIGH * width);
        vd size = widened(load(p + SIZE * width));
        Moments m = central((double)num, widened(s1), widened(s2), widened(load(p + S3 * width)), widened(s4));
        vi safe = (vi)(s4 > 1e-32f) & (vi)(s4 < 1e37f) & (vi)(s1 * s1 <= 0.9f * (float)num * s2);
        if (vsumi(safe) != -LANES)
            for (int i = 0; i < used; i++) {
                if (safe[i] || (s4[i] == 0 && low[i] == 0 && high[i] == 0)) continue;
                Careful c = careful(a, line, j + i, num, 0);
                m.n[i] = c.n, m.mean[i] = c.mean, m.m2[i] = c.m2, m.m3[i] = c.m3, m.m4[i] = c.m4;
                low[i] = c.low, high[i] = c.high, size[i] = c.size;
            }
        all_low = vmin(low, all_low), all_high = vmax(high, all_high), all_size += size;
        all = pool(all, m);
    }
    stored(a->place_sums + j, all.mean, used), stored(a->place_sums + n + j, all.m2, used);
    stored(a->place_sums + 2 * n + j, all.m3, used), stored(a->place_sums + 3 * n + j, all.m4, used);
    stored(a->place_abs + j, all_size, used);
    for (int i = 0; i < used; i++) {
        double *range = a->place_range + j + i;
        range[0] = all_low[i] < range[0] ? all_low[i] : range[0], range[n] = all_high[i] > range[n] ? all_high[i] : range[n];
        a->place_count[j + i] = (int64_t)all.n[i];
    }
}

/* Tables into the histogram, octave by octave; they are left clear. `used` gets the first bucket in use and the end. */
static void drain(const Weight *a) {
    a->used[0] = a->used[1] = 0;
    for (int64_t first = 0; first < NUM_BUCKETS; first += 64) {
        int is_used = 0;
        for (int64_t t = 0; t < a->num_threads; t++) is_used |= octave_is_used(a->tables + t * NUM_BUCKETS + first);
        memset(a->histogram + first, 0, 64 * 8);
        if (!is_used) continue;
        for (int64_t t = 0; t < a->num_threads; t++) {
            uint32_t *table = a->tables + t * NUM_BUCKETS + first;
            for (int64_t k = 0; k < 64; k++) a->histogram[first + k] += table[k];
            memset(table, 0, 64 * 4);
        }
        if (first >= FIRST_NONFINITE_BUCKET) break;
        if (a->used[1] == 0) a->used[0] = first;
        a->used[1] = first + 64;
    }
}

static void join_workers(const Weight *a, Worker *worker) {
    Worker *w = &worker[0];
    for (int64_t t = 1; t < a->num_threads; t++) {
        for (int i = 0; i < worker[t].largest.num; i++) list_add(&w->largest, worker[t].largest.entry[i]);
        for (int i = 0; i < worker[t].nonfinite.num; i++) list_add(&w->nonfinite, worker[t].nonfinite.entry[i]);
        w->zeros += worker[t].zeros, w->nans += worker[t].nans, w->infs += worker[t].infs;
    }
    a->counts[0] += w->zeros, a->counts[1] += w->nans, a->counts[2] += w->infs;
    for (int i = 0; i < w->largest.num; i++) {
        a->value[i] = w->largest.entry[i].value;
        a->value_row[i] = w->largest.entry[i].a, a->value_column[i] = w->largest.entry[i].b;
    }
    for (int i = 0; i < w->nonfinite.num; i++) {
        a->nonfinite_kind[i] = w->nonfinite.entry[i].kind;
        a->nonfinite_row[i] = w->nonfinite.entry[i].a, a->nonfinite_column[i] = w->nonfinite.entry[i].b;
    }
    *a->num_values = w->largest.num, *a->num_nonfinite = w->nonfinite.num;
    drain(a);
}

void skerry_weight_read(Weight *a) {
    char *base = (char *)(((uintptr_t)a->scratch + 63) & ~(uintptr_t)63);
    Worker *worker = (Worker *)base;
    float *part = (float *)(base + a->num_threads * (int64_t)sizeof(Worker));
    int64_t width = padded(a), num_units = (a->num_lines + UNIT - 1) / UNIT;
    for (int64_t t = 0; t < a->num_threads; t++) {
        worker[t].largest.num = worker[t].nonfinite.num = 0, worker[t].zeros = worker[t].nans = worker[t].infs = 0;
        worker[t].table = a->tables + t * NUM_BUCKETS;
        worker[t].largest.limit = (int32_t)a->top_k, worker[t].nonfinite.limit = (int32_t)a->nonfinite_k;
    }
#pragma omp parallel num_threads((int)a->num_threads)
    {
        int me = THREAD;
        for (int64_t first = 0; first < num_units; first += ROUND) {
            int64_t num = num_units - first < ROUND ? num_units - first : ROUND;
#pragma omp for schedule(dynamic, 1)
            for (int64_t u = 0; u < num; u++) read_unit(a, &worker[me], part + u * PARTS * width, (first + u) * UNIT);
#pragma omp for schedule(static)
            for (int64_t b = 0; b < width / LANES; b++) fold(a, part, first * UNIT, num, b);
        }
    }
    join_workers(a, worker);
}
