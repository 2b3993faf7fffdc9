/* traffic_whole: the case of traffic.toml as one module; the forecaster runs through `infer`.
 *
 *   in   speeds    float32[12,-1]
 *        minute    int32[1]
 *        stations  float32[-1,2]
 *   out  mph       float32[-1,12]
 *        level     uint8[-1,12]
 */
#include "whole.h"

#define tona_run recent_run
#include "recent.c"
#undef tona_run
#undef MAX_MPH
#define tona_run outlook_run
#include "outlook.c"
#undef tona_run

enum { INPUTS = 3, STATIONS_IN = 2, OUTPUTS = 2 };

EXPORT_WHOLE("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    if (n_in != INPUTS || n_out != OUTPUTS)
        return fail(BAD_INPUT, "traffic takes speeds, minute, stations and gives mph, level", 0, 0);
    Port seen[2] = {{0}}, y = {0};
    int code = recent_run(in, n_in, seen, 2);
    if (!code) code = INFER("forecast", seen, 2, &y, 1);
    return code ? code : outlook_run((Port[]){y, in[STATIONS_IN]}, 2, out, n_out);
}
