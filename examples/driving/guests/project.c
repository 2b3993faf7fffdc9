/* project: the photo of a fisheye camera -> its part of the bird's-eye view.
 *
 *   in   image   uint8[-1,-1,3]
 *        camera  float32[19]      [0..8]   rows of the matrix that takes a point of the patch
 *                                          (column, row, 1) to a ray (x, y, z) of the camera
 *                                 [9..12]  focal lengths fx, fy and centre cx, cy, in pixels
 *                                 [13..16] k1..k4 of the fisheye
 *                                 [17..18] width and height of the patch
 *   out  patch   uint8[-1,-1,3]   black (0, 0, 0) where the camera sees nothing; what it sees is
 *                                 at least 1 in one channel
 *
 * Undistortion and projection to the ground in one look-up for each pixel of the patch. The fisheye
 * is that of Kannala and Brandt, "A Generic Camera Model and Calibration Method", PAMI 2006: a ray
 * at the angle t from the axis meets the sensor at t (1 + k1 t^2 + k2 t^4 + k3 t^6 + k4 t^8).
 */
#include <math.h>

#include "../../reading/guests/image.h"

enum { NUMBERS = 19, MAX_IMAGE_SIDE = 8192, MAX_PATCH_SIDE = 2048, FRACTION = 256 };
#define NEAR 1e-6

typedef struct {
    double ground[9];
    double fx, fy, cx, cy;
    double k[4];
    int width;
    int height;
} Camera;

static int read_camera(const Port *port, Camera *camera) {
    const float *value = tensor(port);
    for (int i = 0; i < NUMBERS; i++)
        if (!__builtin_isfinite(value[i])) return 0;
    for (int i = 0; i < 9; i++) camera->ground[i] = value[i];
    camera->fx = value[9], camera->fy = value[10], camera->cx = value[11], camera->cy = value[12];
    for (int i = 0; i < 4; i++) camera->k[i] = value[13 + i];
    if (value[17] < 1 || value[17] > MAX_PATCH_SIDE || value[18] < 1 || value[18] > MAX_PATCH_SIDE)
        return 0;
    camera->width = (int)value[17], camera->height = (int)value[18];
    return 1;
}

/* Where on the sensor a point of the patch is seen; 0 when it lies behind the camera. */
static int look(const Camera *camera, int column, int row, double *u, double *v) {
    const double *m = camera->ground;
    double depth = m[6] * column + m[7] * row + m[8];
    if (depth < NEAR) return 0;
    double x = (m[0] * column + m[1] * row + m[2]) / depth;
    double y = (m[3] * column + m[4] * row + m[5]) / depth;
    double r = __builtin_sqrt(x * x + y * y), t = atan(r), t2 = t * t;
    double bent = 1 + t2 * (camera->k[0] + t2 * (camera->k[1] + t2 * (camera->k[2] +
                                                                     t2 * camera->k[3])));
    double scale = r > NEAR ? t * bent / r : 1;
    *u = camera->fx * x * scale + camera->cx;
    *v = camera->fy * y * scale + camera->cy;
    return 1;
}

/* Bilinear between the four neighbours, weights in 1/256. */
static void sample(Image from, double u, double v, uint8_t *rgb) {
    int left = (int)u, top = (int)v;
    int right = min_int(left + 1, from.width - 1), bottom = min_int(top + 1, from.height - 1);
    int across = (int)((u - left) * FRACTION), down = (int)((v - top) * FRACTION);
    const uint8_t *upper = from.rgb + (size_t)3 * from.width * top;
    const uint8_t *lower = from.rgb + (size_t)3 * from.width * bottom;
    int seen = 0;
    for (int channel = 0; channel < 3; channel++) {
        int a = upper[3 * left + channel] * (FRACTION - across) + upper[3 * right + channel] * across;
        int b = lower[3 * left + channel] * (FRACTION - across) + lower[3 * right + channel] * across;
        rgb[channel] = (uint8_t)((a * (FRACTION - down) + b * down + FRACTION * FRACTION / 2) /
                                 (FRACTION * FRACTION));
        seen |= rgb[channel];
    }
    if (!seen) rgb[0] = rgb[1] = rgb[2] = 1;
}

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    Image image;
    Camera camera;
    if (n_in != 2 || n_out != 1 || !read_image(&in[0], MAX_IMAGE_SIDE, &image) ||
        !holds(&in[1], FLOAT32, 1) || in[1].dims[0] != NUMBERS)
        return fail(BAD_INPUT, "project takes image uint8[-1,-1,3] and camera float32[19]", 0, 0);
    if (!read_camera(&in[1], &camera))
        return fail(BAD_INPUT, "the camera has a number that is none, or a patch beyond # pixels",
                    MAX_PATCH_SIDE, 0);
    uint8_t *patch = take((uint64_t)3 * camera.width * camera.height);
    if (!patch) return fail_memory();
    for (int row = 0; row < camera.height; row++)
        for (int column = 0; column < camera.width; column++) {
            uint8_t *rgb = patch + 3 * ((size_t)row * camera.width + column);
            double u, v;
            /* written so that what is not a number counts as unseen */
            int inside = look(&camera, column, row, &u, &v) && u >= 0 && v >= 0 &&
                         u <= image.width - 1 && v <= image.height - 1;
            if (inside) sample(image, u, v, rgb);
            else rgb[0] = rgb[1] = rgb[2] = 0;
        }
    out->dims[0] = (uint32_t)camera.height;
    out->dims[1] = (uint32_t)camera.width;
    out->dims[2] = 3;
    give(out, patch, UINT8, 3);
    return OK;
}
