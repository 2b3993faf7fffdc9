/* recent: the last hour of a road's detectors, as they sent it -> what the forecaster looks at.
 *
 *   in   speeds    float32[12,-1]   mph, a row every five minutes, the newest last; what is not
 *                                   above 0 and at most 200 is missing (a detector that fails sends
 *                                   0)
 *        minute    int32[1]         of the week, at the newest row; Monday 0:00 is 0
 *        stations  float32[-1,2]    of each detector: typical speed, speed on a free road, mph
 *   out  x         float32[-1,13]   of each detector: 12 speeds as (mph - typical) / 10, the oldest
 *                                   first, and which part of the hour is missing
 *        when      float32[22,12]   of each of the next 12 rows, as columns: 1; whether it is a
 *                                   weekend; sine and cosine of 1 to 8 turns a day on a weekday,
 *                                   then of 1 and 2 turns on a weekend, 0 on the other days
 *
 * What is missing takes the newest speed before it, at the beginning the first one after it, and
 * the typical speed where the whole hour is missing.
 */
#include <math.h>

#include "road.h"

enum {
    WEEK_MINUTES = 7 * 1440,
    DAY_MINUTES = 1440,
    WEEKEND_FROM = 5 * 1440,
    FEATURES = STEPS + 1,
    WEEKDAY_TURNS = 8,
    WEEKEND_TURNS = 2,
    MOMENTS = 2 + 2 * (WEEKDAY_TURNS + WEEKEND_TURNS)
};
#define MAX_MPH 200.0f
#define TURN 6.283185307179586

static int is_there(float mph) { return mph > 0 && mph <= MAX_MPH; }

/* One detector's hour without gaps, and the part that was missing behind it. */
static void fill(const float *speeds, uint32_t stride, float typical, float *x) {
    float before = typical;
    int missing = 0;
    for (int i = 0; i < STEPS; i++)
        if (is_there(speeds[(size_t)i * stride])) {
            before = speeds[(size_t)i * stride];
            break;
        }
    for (int i = 0; i < STEPS; i++) {
        float mph = speeds[(size_t)i * stride];
        if (is_there(mph)) before = mph;
        else missing++;
        x[i] = (before - typical) / SCALE_MPH;
    }
    x[STEPS] = (float)missing / STEPS;
}

static void tell_when(int minute, float *when) {
    for (int step = 0; step < STEPS; step++) {
        int then = (minute + (step + 1) * STEP_MINUTES) % WEEK_MINUTES;
        int weekend = then >= WEEKEND_FROM;
        double angle = TURN * (then % DAY_MINUTES) / DAY_MINUTES;
        when[step] = 1;
        when[STEPS + step] = (float)weekend;
        for (int row = 2; row < MOMENTS; row += 2) {
            int of_weekend = row >= 2 + 2 * WEEKDAY_TURNS;
            int turns = of_weekend ? (row - 2) / 2 - WEEKDAY_TURNS + 1 : row / 2;
            float there = of_weekend == weekend ? 1.0f : 0.0f;
            when[row * STEPS + step] = there * (float)sin(turns * angle);
            when[(row + 1) * STEPS + step] = there * (float)cos(turns * angle);
        }
    }
}

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    if (n_in != 3 || n_out != 2 || !holds(&in[0], FLOAT32, 2) || in[0].dims[0] != STEPS ||
        !holds(&in[1], INT32, 1) || in[1].dims[0] != 1)
        return fail(BAD_INPUT, "recent takes speeds float32[12,-1], minute int32[1], stations "
                               "float32[-1,2] and gives x and when", 0, 0);
    uint32_t count = in[0].dims[1];
    if (count < 1 || count > MAX_STATIONS)
        return fail(TOO_LARGE, "there are # detectors, 1 to # are possible", count, MAX_STATIONS);
    if (!read_stations(&in[2], count))
        return fail(BAD_INPUT, "the table is not one of # stations with two speeds each", count, 0);
    int32_t minute = *(const int32_t *)tensor(&in[1]);
    if (minute < 0 || minute >= WEEK_MINUTES)
        return fail(BAD_INPUT, "the minute of the week is not between 0 and #", WEEK_MINUTES - 1, 0);
    float *x = take((uint64_t)count * FEATURES * sizeof(float));
    float *when = take(MOMENTS * STEPS * sizeof(float));
    if (!x || !when) return fail_memory();
    const float *speeds = tensor(&in[0]), *figures = tensor(&in[2]);
    for (uint32_t i = 0; i < count; i++)
        fill(speeds + i, count, figures[FIGURES * i + TYPICAL], x + (size_t)FEATURES * i);
    tell_when(minute, when);
    out[0].dims[0] = count, out[0].dims[1] = FEATURES;
    give(&out[0], x, FLOAT32, 2);
    out[1].dims[0] = MOMENTS, out[1].dims[1] = STEPS;
    give(&out[1], when, FLOAT32, 2);
    return OK;
}
