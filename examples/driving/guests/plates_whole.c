/* plates_whole: the case of plates.toml as one module; the models run through `infer`.
 *
 *   in   file   uint8[-1]
 *        table  uint8[-1]          characters of the recogniser, as `text` takes them
 *        forms  uint8[-1]          as `plate` takes them
 *   out  plate  uint8[-1]
 *        score  float32[-1]
 *        box    float32[-1,4,2]
 */
#include "whole.h"

#define tona_run decode_run
#include "../../reading/guests/decode.c"
#undef tona_run
#define tona_run glance_run
#include "glance.c"
#undef tona_run
#define MAX_IMAGE_SIDE CROP_MAX_IMAGE_SIDE
#define tona_run crop_run
#include "../../reading/guests/crop.c"
#undef tona_run
#undef MAX_IMAGE_SIDE
#define tona_run text_run
#define check check_text
#include "../../reading/guests/text.c"
#undef check
#undef tona_run
#define tona_run plate_run
#define check check_plate
#include "plate.c"
#undef check
#undef tona_run

enum { FILE_IN, TABLE_IN, FORMS_IN, INPUTS, PLATE_OUT = 0, SCORE_OUT, BOX_OUT, OUTPUTS };

EXPORT_WHOLE("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    if (n_in != INPUTS || n_out != OUTPUTS)
        return fail(BAD_INPUT, "plates takes file, table, forms and gives plate, score, box", 0, 0);
    Port seen[2] = {{0}}, x = {0}, map = {0}, cut[4] = {{0}}, told = {0}, lines[3] = {{0}};
    int code = decode_run(&in[FILE_IN], 1, seen, 2);
    if (!code) code = glance_run(&seen[0], 1, &x, 1);
    if (!code) code = INFER("detect", &x, 1, &map, 1);
    if (!code) code = crop_run((Port[]){seen[0], map, seen[1]}, 3, cut, 4);
    if (!code) code = INFER("recognise", &cut[0], 1, &told, 1);
    if (!code) code = text_run((Port[]){told, cut[2], in[TABLE_IN]}, 3, lines, 3);
    if (code) return code;
    Port taken[] = {lines[0], lines[1], lines[2], cut[1], in[FORMS_IN]};
    return plate_run(taken, 5, out, n_out);
}
