/* What the three kernels share: vectors of 16 floats, conversion of half types, ordered short lists.

   Plain C with the vector extensions of gcc and clang; where the machine has AVX-512 a few operations are written as intrinsics,
   because compilers do not find them. Vectors are longer than the registers of older machines; then the compiler splits them. */
#ifndef SKERRY_COMMON_H
#define SKERRY_COMMON_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(_OPENMP)
int omp_get_thread_num(void);
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))
#define NUM_BUCKETS 16384
#define FIRST_NONFINITE_BUCKET (255 << 6)
#define MAX_LIST 256

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));
typedef uint16_t vw __attribute__((vector_size(64)));
typedef double vd __attribute__((vector_size(128)));
typedef int64_t vl __attribute__((vector_size(128)));

enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

INLINE vf load(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vi loadi(const int32_t *p) { vi v; memcpy(&v, p, sizeof v); return v; }
INLINE void storei(int32_t *p, vi v) { memcpy(p, &v, sizeof v); }
INLINE vf load_some(const float *p, int64_t n, float fill) {
    if (n >= LANES) return load(p);
    vf v = fill + (vf){0};
    memcpy(&v, p, (size_t)n * sizeof(float));
    return v;
}
INLINE vf vabs(vf x) { return (vf)((vi)x & 0x7fffffff); }
INLINE vf vselect(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
INLINE vd dmax(vd a, vd b) { vl m = a > b; return (vd)((m & (vl)a) | (~m & (vl)b)); }
INLINE vd widened(vf v) { return __builtin_convertvector(v, vd); }
INLINE vd loadd(const double *p, int64_t n) {
    vd v = {0};
    memcpy(&v, p, (size_t)(n < LANES ? n : LANES) * 8);
    return v;
}
INLINE void stored(double *p, vd v, int64_t n) { memcpy(p, &v, (size_t)(n < LANES ? n : LANES) * 8); }
/* A NaN in x leaves the second operand. */
INLINE vf vmin(vf x, vf y) {
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)x, (__m512)y);
#else
    return vselect((vi)(x < y), x, y);
#endif
}
INLINE vf vmax(vf x, vf y) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)x, (__m512)y);
#else
    return vselect((vi)(x > y), x, y);
#endif
}
/* count + step where a < b. */
INLINE vi vcount_less(vi count, vf a, vf b, int step) {
#if defined(__AVX512F__)
    __mmask16 m = _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
    return (vi)_mm512_mask_add_epi32((__m512i)count, m, (__m512i)count, _mm512_set1_epi32(step));
#else
    return count + ((vi)(a < b) & step);
#endif
}
INLINE vi vcount_zero(vi count, vf a, int step) {
#if defined(__AVX512F__)
    __mmask16 m = _mm512_testn_epi32_mask((__m512i)a, _mm512_set1_epi32(0x7fffffff));
    return (vi)_mm512_mask_add_epi32((__m512i)count, m, (__m512i)count, _mm512_set1_epi32(step));
#else
    return count + ((vi)(a == 0.0f) & step);
#endif
}
INLINE float vsum(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    for (int step = LANES / 2; step; step /= 2)
        for (int i = 0; i < step; i++) v[i] += v[i + step];
    return v[0];
#endif
}
INLINE float vtop(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float m = v[0];
    for (int i = 1; i < LANES; i++) if (v[i] > m) m = v[i];
    return m;
#endif
}
INLINE float vbottom(vf v) { return -vtop(-v); }
/* Four sums at once, at the price of two. */
INLINE void vsum4(float out[4], vf a, vf b, vf c, vf d) {
#if defined(__AVX512F__)
    __m512 p = (__m512)a, q = (__m512)b, r = (__m512)c, s = (__m512)d;
    __m512d t = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(p, q), _mm512_unpackhi_ps(p, q));
    __m512d u = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(r, s), _mm512_unpackhi_ps(r, s));
    __m512 v = _mm512_add_ps((__m512)_mm512_unpacklo_pd(t, u), (__m512)_mm512_unpackhi_pd(t, u));
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1)));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
#else
    out[0] = vsum(a), out[1] = vsum(b), out[2] = vsum(c), out[3] = vsum(d);
#endif
}
/* Whether any a > b, lane by lane; bit i of the answer is lane i. */
INLINE uint32_t vwhere_above(vf a, vf b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#else
    vi m = (vi)(a > b);
    uint32_t bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (uint32_t)(m[i] & 1) << i;
    return bits;
#endif
}
INLINE int32_t vsumi(vi v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
#endif
}
INLINE int32_t float_bits(float x) { int32_t b; memcpy(&b, &x, 4); return b; }
INLINE float bits_float(int32_t b) { float x; memcpy(&x, &b, 4); return x; }
/* Survives every optimisation of floating point. */
INLINE int is_finite(float x) { return (float_bits(x) & 0x7f800000) != 0x7f800000; }
INLINE int is_nan(float x) { return (float_bits(x) & 0x7fffffff) > 0x7f800000; }

INLINE vf half_to_float(vh h) {
    vu w = __builtin_convertvector(h, vu);
    vu size = (w & 0x7fff) << 13, sign = (w & 0x8000) << 16;
    /* 2^112 moves the exponent from bias 15 to 127 and makes subnormals right. */
    vf scaled = (vf)size * 0x1p112f;
    vu special = (vu)((vi)size >= (31 << 23));
    return (vf)((vu)scaled | sign | (special & 0x7f800000));
}
INLINE vf widen_vector(const uint16_t *in, int64_t left, int dtype) {
    vh h = {0};
    memcpy(&h, in, (size_t)(left < LANES ? left : LANES) * 2);
    return dtype == BFLOAT16 ? (vf)(__builtin_convertvector(h, vu) << 16) : half_to_float(h);
}
/* n values as floats; the rest of the last vector is zero. `out` has room for whole vectors. */
INLINE void widen(float *out, const uint16_t *in, int64_t n, int dtype) {
    int64_t i = 0;
    if (dtype == BFLOAT16)
        for (; i + LANES <= n; i += LANES) store(out + i, widen_vector(in + i, LANES, BFLOAT16));
    else
        for (; i + LANES <= n; i += LANES) store(out + i, widen_vector(in + i, LANES, FLOAT16));
    if (i < n) store(out + i, widen_vector(in + i, n - i, dtype));
}
INLINE const void *address(const void *x, int64_t element, int dtype) {
    return (const char *)x + element * (dtype == FLOAT32 ? 4 : 2);
}
INLINE float value_at(const void *x, int64_t element, int dtype) {
    if (dtype == FLOAT32) return ((const float *)x)[element];
    float out[LANES];
    widen(out, (const uint16_t *)x + element, 1, dtype);
    return out[0];
}

/* A short list of the first entries in the order |value| downwards, then a, b, c upwards: the largest values with their places. It is
   a heap: entry 0 is the last in that order, the one that a better entry replaces. */
typedef struct { float size, value; int64_t a, b, c, kind; } Entry;
typedef struct { int32_t num, limit; Entry entry[MAX_LIST]; } List;

INLINE int before(const Entry *p, const Entry *q) {
    if (p->size != q->size) return p->size > q->size;
    if (p->a != q->a) return p->a < q->a;
    if (p->b != q->b) return p->b < q->b;
    return p->c < q->c;
}
static __attribute__((unused)) void list_add(List *list, Entry e) {
    Entry *h = list->entry;
    int32_t i;
    if (list->limit == 0) return;
    if (list->num < list->limit) {
        for (i = list->num++; i > 0 && before(&h[(i - 1) / 2], &e); i = (i - 1) / 2) h[i] = h[(i - 1) / 2];
        h[i] = e;
        return;
    }
    if (!before(&e, &h[0])) return;
    for (i = 0;;) {
        int32_t child = 2 * i + 1;
        if (child >= list->num) break;
        if (child + 1 < list->num && before(&h[child], &h[child + 1])) child++;
        if (!before(&e, &h[child])) break;
        h[i] = h[child];
        i = child;
    }
    h[i] = e;
}
/* |value| that an entry must reach to enter. */
INLINE float list_bar(const List *list, float bar) {
    return list->num == list->limit && list->entry[0].size > bar ? list->entry[0].size : bar;
}
/* Whether a row with this largest |value| can have an entry for the list. */
INLINE int list_wants(const List *list, float size, float bar, int64_t a, int64_t b) {
    if (size < bar || list->limit == 0) return 0;
    if (list->num < list->limit) return 1;
    Entry e = {.size = size, .a = a, .b = b, .c = -1};
    return before(&e, &list->entry[0]);
}
/* Lanes of a vector of n entries (16 at most) that are large enough, or not finite: bit i is entry i. */
INLINE uint32_t list_lanes(const List *list, const float *x, int64_t n, float bar) {
    uint32_t low = vwhere_above(list_bar(list, bar) + (vf){0}, vabs(load_some(x, n, 0)));
    return ~low & (n < LANES ? (1u << n) - 1 : 0xffffu);
}

/* Counts of buckets: one table per thread, all zero between calls, so that clearing costs no more than what was used. */
INLINE void count_buckets(uint32_t *table, const uint16_t *bucket, int64_t n) {
    for (int64_t i = 0; i < n; i += 4) {
        uint64_t b;
        memcpy(&b, bucket + i, 8);
        table[b & 0xffff]++, table[(b >> 16) & 0xffff]++, table[(b >> 32) & 0xffff]++, table[b >> 48]++;
    }
}
INLINE void store_buckets(uint16_t *bucket, vf v) {
    vh b = __builtin_convertvector((vu)vabs(v) >> 17, vh);
    memcpy(bucket, &b, sizeof b);
}
/* Every `every`-th vector of a row (a power of two), the first one chosen by `turn`. `bucket` has room for the row. Buckets are written before the first
   is read: a value just stored in parts of a vector is slow to read. */
INLINE void sketch_vectors(uint32_t *table, uint16_t *bucket, const float *x, int64_t n, int64_t every, int64_t turn) {
    int64_t num = 0, j = (-turn & (every - 1)) * LANES;
    for (; j + LANES <= n; j += every * LANES, num += LANES) store_buckets(bucket + num, load(x + j));
    for (; j < n; j++) table[(float_bits(x[j]) & 0x7fffffff) >> 17]++;
    count_buckets(table, bucket, num);
}
/* Whether any of the 64 counts of an octave is not zero. */
INLINE int octave_is_used(const uint32_t *table) {
    vi any = {0};
    for (int k = 0; k < 64; k += LANES) any |= loadi((const int32_t *)table + k);
    return vsumi((vi)(any != 0)) != 0;
}

/* Moments of 16 series. */
typedef struct { vd n, mean, m2, m3, m4; } Moments;

/* Sums of powers about a centre made central: n, s1..s4 -> mean distance from the centre, M2, M3, M4. n is not 0. */
INLINE Moments central(double count, vd s1, vd s2, vd s3, vd s4) {
    vd n = count + (vd){0}, m = s1 * (1 / count), m2 = s2 - s1 * m, m4 = s4 - 4 * m * s3 + 6 * m * m * s2 - 3 * n * m * m * m * m;
    /* Rounding may leave a little less than nothing. */
    return (Moments){n, m, dmax(m2, (vd){0}), s3 - 3 * m * s2 + 2 * n * m * m * m, dmax(m4, (vd){0})};
}
/* Pebay's pooling of two parts; a part without values is all zeros. */
INLINE Moments pool(Moments a, Moments b) {
    vd n = a.n + b.n, total = n - __builtin_convertvector(n == 0.0, vd), mean = (a.n * a.mean + b.n * b.mean) / total;
    vd p = a.mean - mean, q = b.mean - mean, p2 = p * p, q2 = q * q;
    return (Moments){n, mean, a.m2 + b.m2 + a.n * p2 + b.n * q2,
                     a.m3 + b.m3 + 3 * (p * a.m2 + q * b.m2) + a.n * p2 * p + b.n * q2 * q,
                     a.m4 + b.m4 + 4 * (p * a.m3 + q * b.m3) + 6 * (p2 * a.m2 + q2 * b.m2) + a.n * p2 * p2 + b.n * q2 * q2};
}
INLINE double dsum(vd v) {
    double s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
}
#endif
