/* outlook: what the forecaster says -> speeds and how congested the road will be.
 *
 *   in   y         float32[-1,12]   of each detector, of the next 12 rows: (mph - typical) / 10
 *        stations  float32[-1,2]    typical speed, speed on a free road, mph
 *   out  mph       float32[-1,12]   between 0 and 100
 *        level     uint8[-1,12]     0 free (at least 0.8 of the free road's speed), 1 slow (0.6),
 *                                   2 heavy (0.4), 3 jam
 */
#include "road.h"

#define MAX_MPH 100.0f

static uint8_t level_of(float part) {
    return part >= 0.8f ? 0 : part >= 0.6f ? 1 : part >= 0.4f ? 2 : 3;
}

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    if (n_in != 2 || n_out != 2 || !holds(&in[0], FLOAT32, 2) || in[0].dims[1] != STEPS)
        return fail(BAD_INPUT, "outlook takes y float32[-1,12], stations float32[-1,2] and gives "
                               "mph and level", 0, 0);
    uint32_t count = in[0].dims[0];
    if (count < 1 || count > MAX_STATIONS)
        return fail(TOO_LARGE, "there are # detectors, 1 to # are possible", count, MAX_STATIONS);
    if (!read_stations(&in[1], count))
        return fail(BAD_INPUT, "the table is not one of # stations with two speeds each", count, 0);
    const float *y = tensor(&in[0]), *figures = tensor(&in[1]);
    float *mph = take((uint64_t)count * STEPS * sizeof(float));
    uint8_t *level = take((uint64_t)count * STEPS);
    if (!mph || !level) return fail_memory();
    for (uint32_t i = 0; i < count * STEPS; i++) {
        const float *station = figures + FIGURES * (i / STEPS);
        float speed = y[i] * SCALE_MPH + station[TYPICAL];
        if (!__builtin_isfinite(speed))
            return fail(BAD_INPUT, "the forecast for detector # is no number", i / STEPS, 0);
        mph[i] = __builtin_fmaxf(0, __builtin_fminf(speed, MAX_MPH));
        level[i] = level_of(mph[i] / station[FREE_FLOW]);
    }
    out[0].dims[0] = count, out[0].dims[1] = STEPS;
    give(&out[0], mph, FLOAT32, 2);
    out[1].dims[0] = count, out[1].dims[1] = STEPS;
    give(&out[1], level, UINT8, 2);
    return OK;
}
