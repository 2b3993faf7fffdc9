/* glance: an RGB image -> a small input of the PP-OCR text detector.
 *
 *   in   image  uint8[-1,-1,3]
 *   out  x      float32[1,3,-1,-1]   the canvas of the image with its long side at 416, both sides
 *                                    multiples of 32, values -1..1, planes blue first
 *
 * The number plate of a car nearby is large writing: the detector finds it at a third of the size
 * that a page asks for, in an eighth of the time. `crop` cuts from the image itself.
 */
#include "../../reading/guests/image.h"

enum { MAX_IMAGE_SIDE = 8192, LONG_SIDE = 416 };

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    Image image;
    int left, top;
    if (n_in != 1 || n_out != 1 || !read_image(in, MAX_IMAGE_SIDE, &image))
        return fail(BAD_INPUT, "glance takes one image uint8[-1,-1,3] of 1 to # pixels a side",
                    MAX_IMAGE_SIDE, 0);
    Image canvas = make_canvas(image, &left, &top);
    if (!canvas.rgb) return fail_memory();
    double ratio = (double)LONG_SIDE / max_int(canvas.width, canvas.height);
    Image scaled = {0, round_to_32((int)__builtin_rint(canvas.width * ratio)),
                    round_to_32((int)__builtin_rint(canvas.height * ratio))};
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
