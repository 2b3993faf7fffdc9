/* What the two steps around the forecaster share: stations and the scale of what it sees. */
#ifndef TONA_ROAD_H
#define TONA_ROAD_H

#include "../../reading/guests/guest.h"

enum { STEPS = 12, STEP_MINUTES = 5, MAX_STATIONS = 4096 };
#define SCALE_MPH 10.0f

/* Of each station: its typical speed and that on a free road, mph. */
enum { TYPICAL, FREE_FLOW, FIGURES };

static inline int read_stations(const Port *port, uint32_t count) {
    if (!holds(port, FLOAT32, 2) || port->dims[0] != count || port->dims[1] != FIGURES) return 0;
    const float *figures = tensor(port);
    for (uint32_t i = 0; i < count * FIGURES; i++)
        if (!(figures[i] > 0 && figures[i] < 1000)) return 0;
    return 1;
}

#endif
