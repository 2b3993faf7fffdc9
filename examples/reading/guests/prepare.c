/* prepare: an RGB image -> the input of the PP-OCR text detector.
 *
 *   in   image  uint8[-1,-1,3]
 *   out  x      float32[1,3,-1,-1]   the canvas of the image, its short side at least 736, both
 *                                    sides multiples of 32, values -1..1, planes blue first
 */
#include "image.h"

enum { MAX_IMAGE_SIDE = 8192, MIN_SIDE = 736 };

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    Image image;
    int left, top;
    if (n_in != 1 || n_out != 1 || !read_image(in, MAX_IMAGE_SIDE, &image))
        return fail(BAD_INPUT, "prepare takes one image uint8[-1,-1,3] of 1 to # pixels a side",
                    MAX_IMAGE_SIDE, 0);
    Image canvas = make_canvas(image, &left, &top);
    if (!canvas.rgb) return fail_memory();
    int small = min_int(canvas.width, canvas.height);
    double ratio = small < MIN_SIDE ? (double)MIN_SIDE / small : 1;
    Image scaled = {0, round_to_32((int)(canvas.width * ratio)),
                    round_to_32((int)(canvas.height * ratio))};
    uint64_t count = (uint64_t)3 * scaled.width * scaled.height;
    scaled.rgb = take(count);
    float *planes = take(count * sizeof(float));
    if (!scaled.rgb || !planes || !resize(canvas, scaled)) return fail_memory();
    normalise(scaled, planes, scaled.width);
    out->dims[0] = 1;
    out->dims[1] = 3;
    out->dims[2] = (uint32_t)scaled.height;
    out->dims[3] = (uint32_t)scaled.width;
    give(out, planes, FLOAT32, 4);
    return OK;
}
