/* look: the file of a fisheye camera's photo -> its part of the bird's-eye view.
 *
 *   in   file    uint8[-1]
 *        camera  float32[19]      as `project` takes it
 *   out  patch   uint8[-1,-1,3]
 *
 * decode and project as one step: the photo in between, four times as large as what becomes of it,
 * does not leave the instance.
 */
#include "whole.h"

#define tona_run decode_run
#include "../../reading/guests/decode.c"
#undef tona_run
#define tona_run project_run
#include "project.c"
#undef tona_run

EXPORT_WHOLE("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    if (n_in != 2) return fail(BAD_INPUT, "look takes file and camera and gives patch", 0, 0);
    Port seen[2] = {{0}};
    int code = decode_run(&in[0], 1, seen, 2);
    return code ? code : project_run((Port[]){seen[0], in[1]}, 2, out, n_out);
}
