/* One activation of one batch: all statistics of channels, inputs and tokens.

   1. units (at most UNIT rows of one input), in parallel: tile by tile a pass along the rows (norms, histogram, largest values) and
      a pass down the channels (range, power sums about a centre near the channel's mean, zeros). The sums of a unit are float32
      and depend on its rows only, so any batching gives the same numbers.
   2. blocks of 16 channels, in parallel, after some units: folded into float64 moments, in order. A channel that met a non-finite value or left
      the range of float32 is read again, slowly, in double.
   3. inputs, in parallel: the median channel and the top channels.
   4. blocks of channels, in parallel: in which inputs a channel stands out. */
#include "common.h"

#define UNIT 256
#define HEAD 8 /* rows that place the centre */
#define FAR 4  /* values beyond so many RMS of their row are all sketched, of the others one vector in `every` */
#define NUM_RATIOS 6
static const double RATIOS[NUM_RATIOS] = {3, 5, 10, 20, 50, 100};
enum { LOW, HIGH, S1, S2, S3, S4, TALLY, SHIFT, SCALE, PARTS };
enum { OFT, OSP, MMR, INF_NORM };
enum { SAMPLES, TOKENS, NANS, OFT_N, OSP_N, MMR_N };

typedef struct {
    const void *x;
    int64_t row_stride, num_channels, num_places, num_samples;
    const int64_t *row, *start, *sample, *position;
    int64_t dtype, num_threads, top_k, nonfinite_k, num_top, want_median, every;
    double bar;
    /* state of the accumulator */
    int64_t *count;
    double *sums, *range;
    int64_t *value_counts;
    int32_t *per_sample;
    double *abs_max_sum, *totals;
    int64_t *counts;
    /* of this batch */
    int64_t *histogram, *used;
    uint32_t *tables; /* [thread, 2, bucket], zero before and after */
    float *abs_max;
    double *square;
    double *value;
    int64_t *value_place, *value_channel, *num_values;
    int64_t *nonfinite_kind, *nonfinite_place, *nonfinite_channel, *num_nonfinite;
    char *scratch;
} Activation;

typedef struct { int64_t sample, first, num; } Unit;
typedef struct { double osp, mmr; int64_t osp_n, mmr_n; } UnitSums;
typedef struct {
    List largest, nonfinite;
    int64_t nans;
    double per_channel, unbiased; /* 1 / n and n / (n - 1) */
    uint32_t *near, *far; /* [bucket]: sketched one vector in `every`, and all values far from zero */
} Worker;
typedef struct { double median; float top; int64_t top_last; float inf_norm; } SampleScale;

typedef struct {
    int64_t width, num_units, num_blocks, tile_rows, round; /* units in hand at once */
    Unit *unit;
    UnitSums *unit_sums;
    Worker *worker;
    SampleScale *scale;
    double *pooled; /* [sample, block, 5] */
    float *part;    /* [unit of the round, PARTS, width] */
    float *low, *high; /* [sample, width] */
    float *limit;      /* [place], below it a value is near zero */
    char *private; /* per worker: tile, bucket row, limits */
    int64_t private_size, total;
} Plan;

static char *take(int64_t *at, char *base, int64_t bytes) {
    char *p = base ? base + *at : 0;
    *at += (bytes + 63) / 64 * 64;
    return p;
}

static Plan make_plan(const Activation *a) {
    Plan p;
    memset(&p, 0, sizeof p);
    p.width = (a->num_channels + LANES - 1) / LANES * LANES;
    p.num_blocks = p.width / LANES;
    for (int64_t s = 0; s < a->num_samples; s++) p.num_units += (a->start[s + 1] - a->start[s] + UNIT - 1) / UNIT;
    p.tile_rows = 16384 / p.width / 8 * 8;
    p.tile_rows = p.tile_rows < HEAD ? HEAD : p.tile_rows > 32 ? 32 : p.tile_rows;
    /* Sums of units are folded while they are still in the cache. */
    p.round = (1 << 19) / (PARTS * p.width * 4);
    p.round = p.round < 2 * a->num_threads ? 2 * a->num_threads : p.round;
    p.round = p.round > p.num_units ? p.num_units : p.round;
    int64_t at = 0;
    char *b = a->scratch;
    p.unit = (Unit *)take(&at, b, p.num_units * (int64_t)sizeof(Unit));
    p.unit_sums = (UnitSums *)take(&at, b, p.num_units * (int64_t)sizeof(UnitSums));
    p.worker = (Worker *)take(&at, b, a->num_threads * (int64_t)sizeof(Worker));
    p.scale = (SampleScale *)take(&at, b, a->num_samples * (int64_t)sizeof(SampleScale));
    p.pooled = (double *)take(&at, b, a->num_samples * p.num_blocks * 5 * 8);
    p.part = (float *)take(&at, b, p.round * PARTS * p.width * 4);
    p.low = (float *)take(&at, b, a->num_samples * p.width * 4);
    p.high = (float *)take(&at, b, a->num_samples * p.width * 4);
    p.limit = (float *)take(&at, b, a->num_places * 4);
    p.private_size = (p.tile_rows * p.width * 4 + p.width * 2 + 128 + 63) / 64 * 64;
    p.private = take(&at, b, a->num_threads * p.private_size);
    p.total = at;
    return p;
}

int64_t skerry_activation_scratch(const Activation *a) {
    Activation copy = *a;
    copy.scratch = 0;
    return make_plan(&copy).total + 64;
}

/* Sums of one token over its finite values, in double: for rows that left the range of float32. */
typedef struct { double n, sum, square, fourth; float size; } RowSums;
static RowSums careful_row(const float *x, int64_t n) {
    RowSums r = {0, 0, 0, 0, 0};
    for (int64_t j = 0; j < n; j++) {
        if (!is_finite(x[j])) continue;
        double v = x[j], v2 = v * v;
        r.n += 1, r.sum += v, r.square += v2, r.fourth += v2 * v2;
        if (fabsf(x[j]) > r.size) r.size = fabsf(x[j]);
    }
    return r;
}

typedef struct { vf top, s1, s2, s4; } RowVectors;
INLINE void add_to_row(RowVectors *r, vf v) {
    vf size = vabs(v), v2 = v * v;
    r->top = vmax(size, r->top);
    r->s1 += v;
    r->s2 += v2;
    r->s4 += v2 * v2;
}
static RowSums read_row(const float *x, int64_t n) {
    RowVectors v = {{0}, {0}, {0}, {0}};
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) add_to_row(&v, load(x + j));
    if (j < n) add_to_row(&v, load_some(x + j, n - j, 0));
    float sum[4];
    vsum4(sum, v.s1, v.s2, v.s4, (vf){0});
    RowSums r = {(double)n, sum[0], sum[1], sum[2], vtop(v.top)};
    if (r.size == 0 && r.square == 0) return r;
    int in_range = r.fourth > 1e-30 && r.fourth < 1e37 && r.square - r.sum * r.sum / r.n > 1e-3 * r.square;
    return in_range ? r : careful_row(x, n);
}

/* Values far from zero, found on the way down: all of them are sketched, and none twice. */
static __attribute__((noinline)) void sketch_far(Worker *w, vf v, uint32_t lanes, int was_sketched) {
    uint16_t b[LANES];
    store_buckets(b, v);
    for (; lanes; lanes &= lanes - 1) {
        uint16_t bucket = b[__builtin_ctz(lanes)];
        w->far[bucket]++;
        if (was_sketched) w->near[bucket]--;
    }
}

/* The smallest bucket with more than k of the row's entries at or below it. The row is filled up to whole vectors by 0xffff. */
static int32_t bucket_of_rank(const uint16_t *bucket, int64_t n, int64_t k, int32_t low, int32_t high) {
    while (low < high) {
        int32_t mid = (low + high) / 2;
        int64_t below = 0;
        for (int64_t j = 0; j < n; j += 1 << 16) {
            int64_t stop = j + (1 << 16) < n ? j + (1 << 16) : n;
            vw count = {0}, limit = (uint16_t)mid + (vw){0};
            for (int64_t i = j; i < stop; i += 32) {
                vw b;
                memcpy(&b, bucket + i, sizeof b);
                count -= (vw)(b <= limit);
            }
            below += vsumi((vi)((vu)count & 0xffff) + (vi)((vu)count >> 16));
        }
        if (below > k) high = mid; else low = mid + 1;
    }
    return low;
}
static double middle(int32_t bucket) {
    if (bucket == 0) return 0;
    double low = bits_float(bucket << 17), high = bucket + 1 < FIRST_NONFINITE_BUCKET ? bits_float((bucket + 1) << 17) : low * 1.0078125;
    return low + (high - low) / 2;
}
/* Median of a row's |x| to the width of a bucket; the mean of the middle two where n is even. */
static double row_median(uint16_t *bucket, const RowSums *r, const float *x, int64_t n) {
    int64_t finite = (int64_t)r->n, j = 0;
    if (finite == 0 || r->size == 0) return 0;
    for (; j + LANES <= n; j += LANES) store_buckets(bucket + j, load(x + j));
    if (j < n) store_buckets(bucket + j, load_some(x + j, n - j, 0));
    for (j = n; j % 32; j++) bucket[j] = 0xffff;
    /* By Markov's inequality the median is at most sqrt(2) x RMS. */
    float most = (float)fmin(r->size, 1.4143 * sqrt(r->square / r->n));
    int32_t high = (float_bits(most) >> 17) + 1;
    high = high < FIRST_NONFINITE_BUCKET ? high : FIRST_NONFINITE_BUCKET - 1;
    /* Most often it is above an eighth of the RMS; one look says so. */
    int32_t guess = high > 4 * 64 ? high - 4 * 64 : 0;
    int is_below = bucket_of_rank(bucket, n, (finite - 1) / 2, guess, guess + 1) == guess;
    int32_t first = bucket_of_rank(bucket, n, (finite - 1) / 2, is_below ? 0 : guess + 1, is_below ? guess : high);
    if (finite % 2) return middle(first);
    int32_t last = float_bits(r->size) >> 17;
    int32_t second = bucket_of_rank(bucket, n, finite / 2, first, first + 1);
    if (second > first) second = bucket_of_rank(bucket, n, finite / 2, first + 1, last);
    return (middle(first) + middle(second)) / 2;
}

/* Pass along one row; returns the limit below which its values are near zero. */
static float along_row(const Activation *a, Worker *w, UnitSums *u, uint16_t *bucket, const float *x, int64_t sample, int64_t place) {
    int64_t n = a->num_channels, turn = a->sample[sample] + a->position[place];
    RowSums r = read_row(x, n);
    sketch_vectors(w->near, bucket, x, n, a->every, turn);
    a->abs_max[place] = r.size;
    a->square[place] = r.square;
    /* One division and one root: in rows of a few hundred channels they would be a tenth of the time. */
    double per_channel = r.n == (double)n ? w->per_channel : 1 / r.n, mean_square = r.square * per_channel;
    double variance = (mean_square - r.sum * r.sum * per_channel * per_channel) * (r.n == (double)n ? w->unbiased : r.n / (r.n - 1));
    if (r.n > 1 && variance > 1e-12 * mean_square) {
        double spread = r.fourth * per_channel / (variance * variance);
        if (isfinite(spread)) u->osp += spread > 3 ? spread - 3 : 0, u->osp_n++;
    }
    if (a->want_median && (turn & (a->every - 1)) == 0) {
        double median = row_median(bucket, &r, x, n);
        if (median > 0) u->mmr += r.size / median, u->mmr_n++;
    }
    float bar = (float)a->bar;
    if (list_wants(&w->largest, r.size, bar, a->sample[sample], place))
        for (int64_t j = 0; j < n; j += LANES)
            for (uint32_t lanes = list_lanes(&w->largest, x + j, n - j, bar); lanes; lanes &= lanes - 1) {
                int64_t i = j + __builtin_ctz(lanes);
                if (is_finite(x[i])) list_add(&w->largest, (Entry){fabsf(x[i]), x[i], a->sample[sample], place, i, 0});
            }
    return r.n > 0 ? (float)(0.1 * sqrt(mean_square)) : 0;
}

/* Where to centre and how to scale each channel of a unit: from its first rows. Scales are powers of two, so they cost no rounding. */
INLINE void centre(float *part, int64_t width, int64_t j, int64_t left, const float *const *rows, int64_t num, float typical) {
    vf mean = {0}, distance = {0}, least = 1e-30f + (vf){0};
    for (int64_t r = 0; r < num; r++) mean += load_some(rows[r] + j, left, 0);
    mean *= 1.0f / (float)num;
    for (int64_t r = 0; r < num; r++) distance += vabs(load_some(rows[r] + j, left, 0) - mean);
    distance *= 1.0f / (float)num;
    distance = vselect((vi)(distance > least), distance, vselect((vi)(vabs(mean) > least), vabs(mean), typical + (vf){0}));
    vf scale = (vf)((254 << 23) - ((vi)vmin(distance, 1e30f + (vf){0}) & 0x7f800000));
    part += j;
    store(part + SCALE * width, scale);
    store(part + SHIFT * width, -mean * scale);
    for (int k = S1; k <= S4; k++) store(part + k * width, (vf){0});
    storei((int32_t *)part + TALLY * width, (vi){0});
    store(part + LOW * width, INFINITY + (vf){0});
    store(part + HIGH * width, -INFINITY + (vf){0});
}
static void centre_unit(float *part, int64_t width, int64_t n, const float *const *rows, int64_t num, float typical) {
    int64_t j = 0;
    if (!(typical > 1e-30f && typical < 1e30f)) typical = 1;
    for (; j + LANES <= n; j += LANES) centre(part, width, j, LANES, rows, num, typical);
    if (j < n) centre(part, width, j, n - j, rows, num, typical);
}

/* Pass down the channels of a tile. Tallies count near zeros in the low, zeros in the high half. */
/* `ahead` is where the rows of the next tile are, to be fetched while this one is worked on. */
typedef struct { const float *row[32]; const char *ahead[32]; float limit[32]; int64_t token[32], num, every; Worker *worker; } Tile;
INLINE void down(float *part, int64_t width, int64_t j, int64_t left, const Tile *t) {
    float *p = part + j;
    vf low = load(p + LOW * width), high = load(p + HIGH * width), s1 = load(p + S1 * width), s2 = load(p + S2 * width);
    vf s3 = load(p + S3 * width), s4 = load(p + S4 * width), shift = load(p + SHIFT * width), scale = load(p + SCALE * width);
    vi tally = loadi((int32_t *)p + TALLY * width);
    for (int64_t r = 0; r < t->num; r++) {
        vf v = load_some(t->row[r] + j, left, 0), size = vabs(v), limit = t->limit[r] + (vf){0};
        __builtin_prefetch(t->ahead[r] + j * 4, 0, 2);
        low = vmin(v, low);
        high = vmax(v, high);
        uint32_t far = vwhere_above(size, limit * (10 * FAR));
        if (__builtin_expect(far != 0, 0)) sketch_far(t->worker, v, far, ((j / LANES + t->token[r]) & (t->every - 1)) == 0);
        tally = vcount_less(tally, size, limit, 1);
        tally = vcount_zero(tally, v, 1 << 16);
        vf d = v * scale + shift, d2 = d * d;
        s1 += d;
        s2 += d2;
        s3 += d2 * d;
        s4 += d2 * d2;
    }
    store(p + LOW * width, low), store(p + HIGH * width, high), store(p + S1 * width, s1), store(p + S2 * width, s2);
    store(p + S3 * width, s3), store(p + S4 * width, s4), storei((int32_t *)p + TALLY * width, tally);
}
static void down_channels(float *part, int64_t width, int64_t n, const Tile *t) {
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) down(part, width, j, LANES, t);
    if (j < n) down(part, width, j, n - j, t);
}

static const float *row_of(const Activation *a, int64_t place, float *room) {
    const void *at = address(a->x, a->row[place] * a->row_stride, (int)a->dtype);
    if (a->dtype == FLOAT32) return at;
    widen(room, at, a->num_channels, (int)a->dtype);
    return room;
}

static void read_unit(const Activation *a, const Plan *p, int64_t index, int worker) {
    Unit u = p->unit[index];
    float *room = (float *)(p->private + worker * p->private_size), *part = p->part + index % p->round * PARTS * p->width;
    uint16_t *bucket = (uint16_t *)(room + p->tile_rows * p->width);
    Tile t = {.every = a->every, .worker = &p->worker[worker]};
    UnitSums sums = {0, 0, 0, 0};
    for (int64_t i = 0; i < u.num; i += p->tile_rows) {
        t.num = u.num - i < p->tile_rows ? u.num - i : p->tile_rows;
        for (int64_t r = 0; r < t.num; r++) {
            int64_t place = u.first + i + r;
            t.row[r] = row_of(a, place, room + r * p->width);
            /* The last rows have none after them; fetching the same again is harmless. Half types are as far in half the bytes. */
            int64_t after = place + p->tile_rows < a->num_places ? place + p->tile_rows : place;
            t.ahead[r] = address(a->x, a->row[after] * a->row_stride, (int)a->dtype);
            t.limit[r] = p->limit[place] = along_row(a, t.worker, &sums, bucket, t.row[r], u.sample, place);
            t.token[r] = a->sample[u.sample] + a->position[place];
        }
        if (i == 0) centre_unit(part, p->width, a->num_channels, t.row, t.num < HEAD ? t.num : HEAD, t.limit[0] * 10);
        down_channels(part, p->width, a->num_channels, &t);
    }
    p->unit_sums[index] = sums;
}

/* One channel of one unit in double, non-finite values counted, located and left out. */
typedef struct { double n, mean, m2, m3, m4; float low, high; int64_t near, zero, bad; } Careful;
static Careful careful_channel(const Activation *a, const Plan *p, const Unit *u, int64_t channel, Worker *w) {
    Careful c = {0, 0, 0, 0, 0, INFINITY, -INFINITY, 0, 0, 0};
    double sum = 0;
    for (int64_t i = u->first; i < u->first + u->num; i++) {
        float v = value_at(a->x, a->row[i] * a->row_stride + channel, (int)a->dtype);
        if (!is_finite(v)) {
            list_add(&w->nonfinite, (Entry){0, 0, a->sample[u->sample], i, channel, !is_nan(v)});
            w->nans += is_nan(v);
            c.bad++;
            continue;
        }
        sum += v, c.n++;
        c.low = v < c.low ? v : c.low, c.high = v > c.high ? v : c.high;
        c.zero += v == 0, c.near += fabsf(v) < p->limit[i];
    }
    c.mean = c.n > 0 ? sum / c.n : 0;
    for (int64_t i = u->first; i < u->first + u->num; i++) {
        float v = value_at(a->x, a->row[i] * a->row_stride + channel, (int)a->dtype);
        if (!is_finite(v)) continue;
        double d = v - c.mean, d2 = d * d;
        c.m2 += d2, c.m3 += d2 * d, c.m4 += d2 * d2;
    }
    return c;
}

typedef struct { Moments m; vf low, high; vl near, zero, bad; } Block;

/* One unit into its block of channels, and into what is known of its input. */
static void fold_unit(const Activation *a, const Plan *p, int64_t index, int64_t j, Block *b, Worker *w) {
    const Unit *u = &p->unit[index];
    int64_t width = p->width, used = a->num_channels - j < LANES ? a->num_channels - j : LANES;
    const float *part = p->part + index % p->round * PARTS * width + j;
    /* Scales are powers of two: turning the exponent round is dividing. */
    vd scale = widened((vf)((254 << 23) - (vi)load(part + SCALE * width))), scale2 = scale * scale;
    Moments m = central((double)u->num, widened(load(part + S1 * width)), widened(load(part + S2 * width)),
                        widened(load(part + S3 * width)), widened(load(part + S4 * width)));
    m.mean = (m.mean - widened(load(part + SHIFT * width))) * scale;
    m.m2 *= scale2, m.m3 *= scale2 * scale, m.m4 *= scale2 * scale2;
    vf low = load(part + LOW * width), high = load(part + HIGH * width);
    vi tally = loadi((const int32_t *)part + TALLY * width), exponent = (vi)load(part + S4 * width) & 0x7f800000;
    vl near = __builtin_convertvector(tally & 0xffff, vl), zero = __builtin_convertvector(tally >> 16, vl);
    for (int i = 0; i < used; i++) {
        if (exponent[i] != 0x7f800000) continue;
        Careful c = careful_channel(a, p, u, j + i, w);
        m.n[i] = c.n, m.mean[i] = c.mean, m.m2[i] = c.m2, m.m3[i] = c.m3, m.m4[i] = c.m4;
        low[i] = c.low, high[i] = c.high, near[i] = c.near, zero[i] = c.zero, b->bad[i] += c.bad;
    }
    vd v = m.mean, v2 = v * v, nv = m.n * v;
    vd sums[5] = {m.n, nv, m.m2 + nv * v, m.m3 + 3 * v * m.m2 + nv * v2, m.m4 + 4 * v * m.m3 + 6 * v2 * m.m2 + nv * v2 * v};
    float *all_low = p->low + u->sample * width + j, *all_high = p->high + u->sample * width + j;
    double *pooled = p->pooled + (u->sample * p->num_blocks + j / LANES) * 5;
    int is_first = u->first == a->start[u->sample];
    for (int k = 0; k < 5; k++) {
        for (int64_t i = used; i < LANES; i++) sums[k][i] = 0;
        pooled[k] = (is_first ? 0 : pooled[k]) + dsum(sums[k]);
    }
    store(all_low, is_first ? low : vmin(low, load(all_low)));
    store(all_high, is_first ? high : vmax(high, load(all_high)));
    b->low = vmin(low, b->low), b->high = vmax(high, b->high);
    b->m = pool(b->m, m);
    b->near += near, b->zero += zero;
}

/* Units first to last - 1 into the accumulator's arrays. */
static void fold_block(const Activation *a, const Plan *p, int64_t block, int64_t first, int64_t last, Worker *w) {
    int64_t n = a->num_channels, j = block * LANES, used = n - j < LANES ? n - j : LANES;
    Block b = {.low = INFINITY + (vf){0}, .high = -INFINITY + (vf){0}};
    double count[LANES] = {0};
    for (int i = 0; i < used; i++) count[i] = (double)a->count[j + i];
    b.m = (Moments){loadd(count, LANES), loadd(a->sums + j, used), loadd(a->sums + n + j, used), loadd(a->sums + 2 * n + j, used), loadd(a->sums + 3 * n + j, used)};
    for (int64_t index = first; index < last; index++) fold_unit(a, p, index, j, &b, w);
    stored(a->sums + j, b.m.mean, used), stored(a->sums + n + j, b.m.m2, used);
    stored(a->sums + 2 * n + j, b.m.m3, used), stored(a->sums + 3 * n + j, b.m.m4, used);
    for (int i = 0; i < used; i++) {
        a->count[j + i] = (int64_t)b.m.n[i];
        a->range[j + i] = b.low[i] < a->range[j + i] ? b.low[i] : a->range[j + i];
        a->range[n + j + i] = b.high[i] > a->range[n + j + i] ? b.high[i] : a->range[n + j + i];
        a->value_counts[j + i] += b.zero[i], a->value_counts[n + j + i] += b.near[i], a->value_counts[2 * n + j + i] += b.bad[i];
    }
}

/* The k-th smallest, 0 first, of n floats >= 0, filled up to whole vectors by infinity: their bits order as they do. */
static int32_t nth(const float *v, int64_t n, int64_t k, int32_t low, int32_t high) {
    while (low < high) {
        int32_t mid = low + (high - low) / 2;
        vi below = {0};
        for (int64_t j = 0; j < n; j += LANES) below -= (vi)(loadi((const int32_t *)v + j) <= mid);
        if (vsumi(below) > k) high = mid; else low = mid + 1;
    }
    return low;
}

/* Largest |x| of every channel of a sample that has one, side by side; returns how many. */
static int64_t sizes_of(const float *low, const float *high, int64_t n, float *room) {
    vi missing = {0};
    for (int64_t j = 0; j < n; j += LANES) {
        vf size = vmax(-load(low + j), load(high + j));
        missing |= (vi)(size < 0.0f);
        store(room + j, size);
    }
    int64_t num = n;
    if (vsumi(missing)) {
        num = 0;
        for (int64_t j = 0; j < n; j++)
            if (room[j] >= 0) room[num++] = room[j];
    }
    for (int64_t j = num; j % LANES; j++) room[j] = INFINITY;
    return num;
}

static void scale_sample(const Activation *a, const Plan *p, int64_t s, float *room) {
    const float *low = p->low + s * p->width, *high = p->high + s * p->width;
    int64_t num = sizes_of(low, high, a->num_channels, room);
    SampleScale *scale = &p->scale[s];
    *scale = (SampleScale){0, INFINITY, -1, 0};
    if (!num) return;
    vf least = INFINITY + (vf){0}, most = {0}, next = least;
    for (int64_t j = 0; j < num; j += LANES) least = vmin(load(room + j), least), most = vmax(load_some(room + j, num - j, 0), most);
    scale->inf_norm = vtop(most);
    int32_t from = float_bits(vbottom(least)), to = float_bits(scale->inf_norm);
    int64_t k = num - (a->num_top < num ? a->num_top : num), half = (num - 1) / 2;
    int32_t middle_bits = nth(room, num, half, from, to);
    int32_t top_bits = k >= half ? nth(room, num, k, middle_bits, to) : nth(room, num, k, from, middle_bits);
    float lower = bits_float(middle_bits), top = bits_float(top_bits);
    vi up_to_middle = {0}, up_to_top = {0};
    for (int64_t j = 0; j < num; j += LANES) {
        vf v = load(room + j);
        vi above = (vi)(v > lower);
        up_to_middle -= ~above, up_to_top -= (vi)(v <= top);
        next = vmin(vselect(above, v, next), next);
    }
    double upper = num % 2 == 0 && vsumi(up_to_middle) <= num / 2 ? vbottom(next) : lower;
    scale->median = ((double)lower + upper) / 2;
    scale->top = top;
    int64_t equal = vsumi(up_to_top) - k; /* so many of the channels that equal the threshold are top, the first ones */
    for (int64_t j = 0; j < a->num_channels && equal > 0; j++) {
        float size = -low[j] > high[j] ? -low[j] : high[j];
        if (size == top) equal--, scale->top_last = j;
    }
}

/* The smallest float that is at least x: compares as x itself would. */
static float float_at_least(double x) {
    float f = (float)x;
    return (double)f < x ? nextafterf(f, INFINITY) : f;
}

static void count_samples(const Activation *a, const Plan *p, int64_t block) {
    int64_t n = a->num_channels, j = block * LANES, used = n - j < LANES ? n - j : LANES;
    vi seen = {0}, top = {0}, positive = {0}, high_count[NUM_RATIOS] = {{0}}, lane;
    double sum[LANES] = {0};
    for (int i = 0; i < LANES; i++) lane[i] = (int32_t)(j + i);
    for (int64_t s = 0; s < a->num_samples; s++) {
        const SampleScale *c = &p->scale[s];
        vf low = load(p->low + s * p->width + j), high = load(p->high + s * p->width + j), size = vmax(-low, high);
        vi is_seen = (vi)(size >= 0.0f);
        seen -= is_seen;
        top -= is_seen & ((vi)(size > c->top) | ((vi)(size == c->top) & (lane <= (int32_t)c->top_last)));
        positive -= is_seen & (vi)(high >= -low) & (vi)(high > 0.0f);
        for (int r = 0; r < NUM_RATIOS; r++) {
            float limit = c->median > 0 ? float_at_least(RATIOS[r] * c->median) : INFINITY;
            high_count[r] -= is_seen & (vi)(size >= limit);
        }
        for (int i = 0; i < LANES; i++) sum[i] += is_seen[i] ? size[i] : 0;
    }
    for (int i = 0; i < used; i++) {
        a->per_sample[j + i] += seen[i], a->per_sample[n + j + i] += top[i], a->per_sample[2 * n + j + i] += positive[i];
        for (int r = 0; r < NUM_RATIOS; r++) a->per_sample[(3 + r) * n + j + i] += high_count[r][i];
        a->abs_max_sum[j + i] += sum[i];
    }
}

static void add_samples(const Activation *a, const Plan *p) {
    for (int64_t s = 0; s < a->num_samples; s++) {
        double t[5] = {0};
        for (int64_t b = 0; b < p->num_blocks; b++)
            for (int k = 0; k < 5; k++) t[k] += p->pooled[(s * p->num_blocks + b) * 5 + k];
        a->totals[INF_NORM] += p->scale[s].inf_norm;
        if (t[0] < 2) continue;
        double n = t[0], mean = t[1] / n, r2 = t[2] / n, m2 = r2 - mean * mean, s2 = m2 * n / (n - 1);
        double m4 = t[4] / n - 4 * mean * t[3] / n + 6 * mean * mean * r2 - 3 * mean * mean * mean * mean;
        if (s2 > 1e-12 * r2) a->totals[OFT] += m4 / (s2 * s2), a->counts[OFT_N]++;
    }
    for (int64_t u = 0; u < p->num_units; u++) {
        a->totals[OSP] += p->unit_sums[u].osp, a->counts[OSP_N] += p->unit_sums[u].osp_n;
        a->totals[MMR] += p->unit_sums[u].mmr, a->counts[MMR_N] += p->unit_sums[u].mmr_n;
    }
    a->counts[SAMPLES] += a->num_samples, a->counts[TOKENS] += a->num_places;
}

/* Tables into the histogram, octave by octave; they are left clear. `used` gets the first bucket in use and the end. */
static void drain(const Activation *a) {
    a->used[0] = a->used[1] = 0;
    for (int64_t first = 0; first < NUM_BUCKETS; first += 64) {
        int is_used = 0;
        for (int64_t t = 0; t < 2 * a->num_threads; t++) is_used |= octave_is_used(a->tables + t * NUM_BUCKETS + first);
        if (!is_used) {
            memset(a->histogram + first, 0, 64 * 8);
            continue;
        }
        for (int64_t k = first; k < first + 64; k++) {
            int64_t near = 0, far = 0;
            for (int64_t t = 0; t < a->num_threads; t++) {
                uint32_t *table = a->tables + 2 * t * NUM_BUCKETS + k;
                near += (int32_t)table[0], far += table[NUM_BUCKETS];
                table[0] = table[NUM_BUCKETS] = 0;
            }
            a->histogram[k] = near * a->every + far;
        }
        if (first >= FIRST_NONFINITE_BUCKET) break;
        if (a->used[1] == 0) a->used[0] = first;
        a->used[1] = first + 64;
    }
}

static void join_workers(const Activation *a, const Plan *p) {
    List *largest = &p->worker[0].largest, *missing = &p->worker[0].nonfinite;
    a->counts[NANS] += p->worker[0].nans;
    for (int64_t t = 1; t < a->num_threads; t++) {
        Worker *w = &p->worker[t];
        for (int i = 0; i < w->largest.num; i++) list_add(largest, w->largest.entry[i]);
        for (int i = 0; i < w->nonfinite.num; i++) list_add(missing, w->nonfinite.entry[i]);
        a->counts[NANS] += w->nans;
    }
    for (int i = 0; i < largest->num; i++) {
        a->value[i] = largest->entry[i].value;
        a->value_place[i] = largest->entry[i].b, a->value_channel[i] = largest->entry[i].c;
    }
    for (int i = 0; i < missing->num; i++) {
        a->nonfinite_kind[i] = missing->entry[i].kind;
        a->nonfinite_place[i] = missing->entry[i].b, a->nonfinite_channel[i] = missing->entry[i].c;
    }
    *a->num_values = largest->num, *a->num_nonfinite = missing->num;
    drain(a);
}

void skerry_activation_read(Activation *a) {
    a->scratch = (char *)(((uintptr_t)a->scratch + 63) & ~(uintptr_t)63);
    Plan p = make_plan(a);
    int64_t num = 0;
    for (int64_t s = 0; s < a->num_samples; s++)
        for (int64_t i = a->start[s]; i < a->start[s + 1]; i += UNIT)
            p.unit[num++] = (Unit){s, i, a->start[s + 1] - i < UNIT ? a->start[s + 1] - i : UNIT};
    for (int64_t t = 0; t < a->num_threads; t++) {
        p.worker[t].largest.num = p.worker[t].nonfinite.num = 0, p.worker[t].nans = 0;
        p.worker[t].per_channel = 1 / (double)a->num_channels;
        p.worker[t].unbiased = a->num_channels > 1 ? (double)a->num_channels / (double)(a->num_channels - 1) : 0;
        p.worker[t].near = a->tables + 2 * t * NUM_BUCKETS, p.worker[t].far = p.worker[t].near + NUM_BUCKETS;
        p.worker[t].largest.limit = (int32_t)a->top_k, p.worker[t].nonfinite.limit = (int32_t)a->nonfinite_k;
    }
#pragma omp parallel num_threads((int)a->num_threads)
    {
        int me = THREAD;
        for (int64_t first = 0; first < p.num_units; first += p.round) {
            int64_t last = first + p.round < p.num_units ? first + p.round : p.num_units;
#pragma omp for schedule(dynamic, 1)
            for (int64_t u = first; u < last; u++) read_unit(a, &p, u, me);
#pragma omp for schedule(static)
            for (int64_t b = 0; b < p.num_blocks; b++) fold_block(a, &p, b, first, last, &p.worker[me]);
        }
#pragma omp for schedule(static)
        for (int64_t s = 0; s < a->num_samples; s++) scale_sample(a, &p, s, (float *)(p.private + me * p.private_size));
#pragma omp for schedule(static)
        for (int64_t b = 0; b < p.num_blocks; b++) count_samples(a, &p, b);
    }
    add_samples(a, &p);
    join_workers(a, &p);
}
