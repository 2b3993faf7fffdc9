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
#include "../../reading/guests/image.h"

enum { NUMBERS = 19, MAX_IMAGE_SIDE = 8192, MAX_PATCH_SIDE = 2048, FRACTION = 256, AT_ONCE = 64 };
#define NEAR 1e-6f

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

/* The angle whose tangent is r >= 0, to 2e-7 (Cephes' polynomial, the range folded twice); without a
 * branch, so that four are computed at once. */
static inline float angle_of(float r) {
    int steep = r > 2.41421356f, slanted = r > 0.41421356f;
    float top = steep ? -1.0f : slanted ? r - 1.0f : r;
    float low = steep ? r : slanted ? r + 1.0f : 1.0f;
    float x = top / low, z = x * x;
    float tail = ((8.05374449538e-2f * z - 1.38776856032e-1f) * z + 1.99777106478e-1f) * z -
                 3.33329491539e-1f;
    return (steep ? 1.57079632679f : slanted ? 0.785398163397f : 0.0f) + (tail * z * x + x);
}

/* Where on the sensor the points of a part of a row are seen; a negative u: behind the camera. */
static void look(const Camera *camera, int column, int row, float *u, float *v) {
    float m[9], k[4];
    for (int i = 0; i < 9; i++) m[i] = (float)camera->ground[i];
    for (int i = 0; i < 4; i++) k[i] = (float)camera->k[i];
    float x_row = m[1] * (float)row + m[2], y_row = m[4] * (float)row + m[5];
    float depth_row = m[7] * (float)row + m[8];
    float fx = (float)camera->fx, fy = (float)camera->fy;
    float cx = (float)camera->cx, cy = (float)camera->cy;
    for (int i = 0; i < AT_ONCE; i++) {
        float at = (float)(column + i), depth = m[6] * at + depth_row;
        float x = (m[0] * at + x_row) / depth, y = (m[3] * at + y_row) / depth;
        float r = __builtin_sqrtf(x * x + y * y), t = angle_of(r), t2 = t * t;
        float bent = t * (1 + t2 * (k[0] + t2 * (k[1] + t2 * (k[2] + t2 * k[3]))));
        float scale = r > NEAR ? bent / r : 1;
        u[i] = depth < NEAR ? -1 : fx * x * scale + cx;
        v[i] = fy * y * scale + cy;
    }
}

/* Bilinear between the four neighbours, weights in 1/256. */
static inline void sample(Image from, float u, float v, uint8_t *rgb) {
    int left = (int)u, top = (int)v;
    int across = (int)((u - (float)left) * FRACTION), down = (int)((v - (float)top) * FRACTION);
    int right = left + 1 < from.width ? 3 : 0, below = top + 1 < from.height ? 3 * from.width : 0;
    const uint8_t *at = from.rgb + (size_t)3 * from.width * top + 3 * left;
    int seen = 0;
    for (int channel = 0; channel < 3; channel++, at++) {
        int a = at[0] * (FRACTION - across) + at[right] * across;
        int b = at[below] * (FRACTION - across) + at[below + right] * across;
        rgb[channel] = (uint8_t)((a * (FRACTION - down) + b * down + FRACTION * FRACTION / 2) /
                                 (FRACTION * FRACTION));
        seen |= rgb[channel];
    }
    if (!seen) rgb[0] = rgb[1] = rgb[2] = 1;
}

static void project_row(const Camera *camera, Image image, int row, uint8_t *rgb) {
    float u[AT_ONCE], v[AT_ONCE], u_end = (float)(image.width - 1);
    float v_end = (float)(image.height - 1);
    for (int column = 0; column < camera->width; column += AT_ONCE) {
        int count = min_int(AT_ONCE, camera->width - column);
        look(camera, column, row, u, v);
        for (int i = 0; i < count; i++, rgb += 3) {
            /* written so that what is not a number counts as unseen */
            if (u[i] >= 0 && v[i] >= 0 && u[i] <= u_end && v[i] <= v_end)
                sample(image, u[i], v[i], rgb);
            else rgb[0] = rgb[1] = rgb[2] = 0;
        }
    }
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
        project_row(&camera, image, row, patch + (size_t)3 * camera.width * row);
    out->dims[0] = (uint32_t)camera.height;
    out->dims[1] = (uint32_t)camera.width;
    out->dims[2] = 3;
    give(out, patch, UINT8, 3);
    return OK;
}
