/* forecast: the model of forecaster.onnx without a runtime for models.
 *
 *   in   x        float32[-1,13]   of each detector, from `recent`
 *        when     float32[22,12]
 *        weights  float32[-1]      the model's constants one after another, in the order of `Net`;
 *                                  forecaster_weights.py writes them
 *   out  y        float32[-1,12]   of each detector, of the next 12 rows: (mph - typical) / 10
 *
 * The network is small: two million multiplications. Starting a runtime for models takes longer, and
 * forty times the memory.
 */
#include "road.h"

enum { LAGS = STEPS, STATE = 2, MOMENTS = 22, SEEN = LAGS - 1 + 2 * STEPS + STATE, HIDDEN = 64 };

typedef struct {
    const float *seen;     /* [SEEN][HIDDEN] */
    const float *when;     /* [MOMENTS][HIDDEN] */
    const float *second;   /* [HIDDEN][HIDDEN] */
    const float *b_second; /* [HIDDEN] */
    const float *last;     /* [HIDDEN][STEPS] */
    const float *b_last;   /* [STEPS] */
    const float *nature;   /* [detectors][HIDDEN] */
    const float *near;     /* [detectors][detectors] */
    const float *expected; /* [detectors][MOMENTS] */
} Net;

static const float *next(const float **at, uint32_t count) {
    const float *here = *at;
    *at += count;
    return here;
}

static int read_net(const Port *port, uint32_t detectors, Net *net) {
    if (!holds(port, FLOAT32, 1)) return 0;
    uint64_t fixed = (SEEN + MOMENTS + HIDDEN + 1) * HIDDEN + HIDDEN * STEPS + STEPS;
    uint64_t wanted = fixed + (uint64_t)detectors * (HIDDEN + detectors + MOMENTS);
    if (port->dims[0] != wanted) return 0;
    const float *at = tensor(port);
    net->seen = next(&at, SEEN * HIDDEN);
    net->when = next(&at, MOMENTS * HIDDEN);
    net->second = next(&at, HIDDEN * HIDDEN);
    net->b_second = next(&at, HIDDEN);
    net->last = next(&at, HIDDEN * STEPS);
    net->b_last = next(&at, STEPS);
    net->nature = next(&at, detectors * HIDDEN);
    net->near = next(&at, detectors * detectors);
    net->expected = next(&at, detectors * MOMENTS);
    return 1;
}

/* sum += in @ weights, for `rows` numbers and a matrix of as many rows. */
static inline void add_product(float *restrict sum, const float *restrict in,
                               const float *restrict weights, int rows, int columns) {
    for (int row = 0; row < rows; row++) {
        float value = in[row];
        if (value == 0) continue;
        for (int i = 0; i < columns; i++) sum[i] += value * weights[row * columns + i];
    }
}

static inline void keep_positive(float *values) {
    for (int i = 0; i < HIDDEN; i++) values[i] = values[i] > 0 ? values[i] : 0;
}

/* What the network sees of one detector. */
static void look(const Net *net, const float *x, const float *when, uint32_t detectors, uint32_t i,
                 float *seen) {
    const float *own = x + (size_t)i * (STEPS + 1);
    float last = own[STEPS - 1], around[STEPS] = {0}, usual[STEPS] = {0};
    for (uint32_t k = 0; k < detectors; k++) {
        float weight = net->near[(size_t)i * detectors + k];
        if (weight == 0) continue;
        const float *other = x + (size_t)k * (STEPS + 1);
        for (int step = 0; step < STEPS; step++) around[step] += weight * other[step];
    }
    add_product(usual, net->expected + (size_t)i * MOMENTS, when, MOMENTS, STEPS);
    for (int step = 0; step < LAGS - 1; step++) *seen++ = own[step] - last;
    for (int step = 0; step < STEPS; step++) *seen++ = around[step] - last;
    for (int step = 0; step < STEPS; step++) *seen++ = usual[step] - last;
    *seen++ = last;
    *seen = own[STEPS];
}

static void forecast(const Net *net, const float *x, const float *when, uint32_t detectors, float *y) {
    float first_moment[MOMENTS], time[HIDDEN] = {0};
    for (int row = 0; row < MOMENTS; row++) first_moment[row] = when[row * STEPS];
    add_product(time, first_moment, net->when, MOMENTS, HIDDEN);
    for (uint32_t i = 0; i < detectors; i++) {
        float seen[SEEN], first[HIDDEN], second[HIDDEN];
        look(net, x, when, detectors, i, seen);
        for (int k = 0; k < HIDDEN; k++) first[k] = net->nature[(size_t)i * HIDDEN + k] + time[k];
        add_product(first, seen, net->seen, SEEN, HIDDEN);
        keep_positive(first);
        __builtin_memcpy(second, net->b_second, sizeof second);
        add_product(second, first, net->second, HIDDEN, HIDDEN);
        keep_positive(second);
        float *out = y + (size_t)i * STEPS;
        __builtin_memcpy(out, net->b_last, STEPS * sizeof(float));
        add_product(out, second, net->last, HIDDEN, STEPS);
        for (int step = 0; step < STEPS; step++) out[step] += x[i * (STEPS + 1) + STEPS - 1];
    }
}

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    if (n_in != 3 || n_out != 1 || !holds(&in[0], FLOAT32, 2) || in[0].dims[1] != STEPS + 1 ||
        !holds(&in[1], FLOAT32, 2) || in[1].dims[0] != MOMENTS || in[1].dims[1] != STEPS)
        return fail(BAD_INPUT, "forecast takes x float32[-1,13], when float32[22,12], weights "
                               "float32[-1] and gives y", 0, 0);
    uint32_t detectors = in[0].dims[0];
    if (detectors < 1 || detectors > MAX_STATIONS)
        return fail(TOO_LARGE, "there are # detectors, 1 to # are possible", detectors,
                    MAX_STATIONS);
    Net net;
    if (!read_net(&in[2], detectors, &net))
        return fail(BAD_INPUT, "the weights are not those of a road with # detectors", detectors, 0);
    float *y = take((uint64_t)detectors * STEPS * sizeof(float));
    if (!y) return fail_memory();
    forecast(&net, tensor(&in[0]), tensor(&in[1]), detectors, y);
    out[0].dims[0] = detectors, out[0].dims[1] = STEPS;
    give(&out[0], y, FLOAT32, 2);
    return OK;
}
