/* surround_whole: the case of surround.toml as one module.
 *
 *   in   front, back, left, right                                  uint8[-1]
 *        front_camera, back_camera, left_camera, right_camera      float32[19]
 *   out  view                                                      uint8[-1,-1,3]
 */
#include "whole.h"

#define tona_run decode_run
#include "../../reading/guests/decode.c"
#undef tona_run
#define tona_run project_run
#include "project.c"
#undef tona_run
#define MAX_SIDE FUSE_MAX_SIDE
#define tona_run fuse_run
#include "fuse.c"
#undef tona_run

EXPORT_WHOLE("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    if (n_in != 2 * CAMERAS)
        return fail(BAD_INPUT, "surround takes four files and four cameras and gives view", 0, 0);
    Port patch[CAMERAS] = {{0}};
    for (int i = 0; i < CAMERAS; i++) {
        Port seen[2] = {{0}};
        int code = decode_run(&in[i], 1, seen, 2);
        if (!code) code = project_run((Port[]){seen[0], in[CAMERAS + i]}, 2, &patch[i], 1);
        if (code) return code;
    }
    return fuse_run(patch, CAMERAS, out, n_out);
}
