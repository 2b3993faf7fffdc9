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

enum {
    NUMBERS = 19,
    MIN_IMAGE_SIDE = 2,
    MAX_IMAGE_SIDE = 8192,
    MAX_PATCH_SIDE = 2048,
    FRACTION = 256,
    AT_ONCE = 64
};
#define NEAR 1e-6f

typedef struct {
    float ground[9];
    float fx, fy, cx, cy;
    float k[4];
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

#define ALL(number) wasm_f32x4_splat(number)
#define PLUS(a, b) wasm_f32x4_add(a, b)
#define TIMES(a, b) wasm_f32x4_mul(a, b)
#define CHOSEN(condition, a, b) wasm_v128_bitselect(a, b, condition)

/* The angle whose tangent is r >= 0, to 2e-7 (Cephes' polynomial, the range folded twice). */
static inline v128_t angle_of(v128_t r) {
    v128_t steep = wasm_f32x4_gt(r, ALL(2.41421356f)), slanted = wasm_f32x4_gt(r, ALL(0.41421356f));
    v128_t top = CHOSEN(steep, ALL(-1), CHOSEN(slanted, wasm_f32x4_sub(r, ALL(1)), r));
    v128_t low = CHOSEN(steep, r, CHOSEN(slanted, PLUS(r, ALL(1)), ALL(1)));
    v128_t x = wasm_f32x4_div(top, low), z = TIMES(x, x);
    v128_t tail = wasm_f32x4_sub(TIMES(ALL(8.05374449538e-2f), z), ALL(1.38776856032e-1f));
    tail = PLUS(TIMES(tail, z), ALL(1.99777106478e-1f));
    tail = wasm_f32x4_sub(TIMES(tail, z), ALL(3.33329491539e-1f));
    v128_t folded = CHOSEN(steep, ALL(1.57079632679f),
                           CHOSEN(slanted, ALL(0.785398163397f), ALL(0)));
    return PLUS(folded, PLUS(TIMES(TIMES(tail, z), x), x));
}

/* Where four points of a row are seen, pixels of the image; not a number: behind the camera. */
static inline void look(const Camera *camera, v128_t column, float row, v128_t *u, v128_t *v) {
    const float *m = camera->ground, *k = camera->k;
    v128_t depth = PLUS(TIMES(ALL(m[6]), column), ALL(m[7] * row + m[8]));
    v128_t x = PLUS(TIMES(ALL(m[0]), column), ALL(m[1] * row + m[2]));
    v128_t y = PLUS(TIMES(ALL(m[3]), column), ALL(m[4] * row + m[5]));
    x = wasm_f32x4_div(x, depth), y = wasm_f32x4_div(y, depth);
    v128_t r = wasm_f32x4_sqrt(PLUS(TIMES(x, x), TIMES(y, y)));
    v128_t t = angle_of(r), t2 = TIMES(t, t), bent = TIMES(t2, ALL(k[3]));
    for (int i = 2; i >= 0; i--) bent = TIMES(t2, PLUS(ALL(k[i]), bent));
    bent = TIMES(t, PLUS(ALL(1), bent));
    v128_t scale = CHOSEN(wasm_f32x4_gt(r, ALL(NEAR)), wasm_f32x4_div(bent, r), ALL(1));
    v128_t before = wasm_f32x4_ge(depth, ALL(NEAR));
    *u = PLUS(TIMES(TIMES(ALL(camera->fx), x), scale), ALL(camera->cx));
    *u = CHOSEN(before, *u, ALL(__builtin_nanf("")));
    *v = PLUS(TIMES(TIMES(ALL(camera->fy), y), scale), ALL(camera->cy));
}

/* For a coordinate the first of two neighbours, and the weight of the second in 1/256. The last pixel
 * is the second neighbour of the one before it, so that both always exist. */
static inline v128_t neighbour(v128_t at, int side, v128_t *weight) {
    v128_t first = wasm_i32x4_trunc_sat_f32x4(at);
    first = wasm_i32x4_min(first, wasm_i32x4_splat(side - 2));
    v128_t part = wasm_f32x4_sub(at, wasm_f32x4_convert_i32x4(first));
    *weight = wasm_i32x4_trunc_sat_f32x4(TIMES(part, ALL(FRACTION)));
    return first;
}

/* What some pixels of a row take: the byte where their four neighbours begin, -1 where nothing is
 * seen, and the weights of those to the right and below. */
typedef struct {
    int32_t at[AT_ONCE];
    int32_t across[AT_ONCE];
    int32_t down[AT_ONCE];
} Taps;

static void plan(const Camera *camera, Image image, int column, int row, Taps *taps) {
    for (int i = 0; i < AT_ONCE; i += 4) {
        int c = column + i;
        v128_t u, v, across, down, columns = wasm_i32x4_make(c, c + 1, c + 2, c + 3);
        look(camera, wasm_f32x4_convert_i32x4(columns), (float)row, &u, &v);
        /* written so that what is not a number counts as unseen */
        v128_t seen = wasm_v128_and(wasm_f32x4_ge(u, ALL(0)), wasm_f32x4_ge(v, ALL(0)));
        seen = wasm_v128_and(seen, wasm_f32x4_le(u, ALL((float)(image.width - 1))));
        seen = wasm_v128_and(seen, wasm_f32x4_le(v, ALL((float)(image.height - 1))));
        v128_t left = neighbour(u, image.width, &across), top = neighbour(v, image.height, &down);
        v128_t at = wasm_i32x4_add(wasm_i32x4_mul(top, wasm_i32x4_splat(3 * image.width)),
                                   wasm_i32x4_mul(left, wasm_i32x4_splat(3)));
        wasm_v128_store(&taps->at[i], CHOSEN(seen, at, wasm_i32x4_splat(-1)));
        wasm_v128_store(&taps->across[i], across);
        wasm_v128_store(&taps->down[i], down);
    }
}

/* Bilinear between the four neighbours; each row of two is read as 8 bytes. RGB in the lower bytes. */
static inline uint32_t sample(const uint8_t *at, int row_bytes, int across, int down) {
    /* of either neighbour's channel, next to each other, 16 bits */
    const v128_t paired = wasm_i8x16_make(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
    v128_t weights = wasm_i32x4_splat((FRACTION - across) | across << 16);
    v128_t upper = wasm_i8x16_swizzle(wasm_v128_load64_zero(at), paired);
    v128_t lower = wasm_i8x16_swizzle(wasm_v128_load64_zero(at + row_bytes), paired);
    upper = wasm_i32x4_mul(wasm_i32x4_dot_i16x8(upper, weights),
                           wasm_i32x4_splat(FRACTION - down));
    lower = wasm_i32x4_mul(wasm_i32x4_dot_i16x8(lower, weights), wasm_i32x4_splat(down));
    v128_t sum = wasm_i32x4_add(wasm_i32x4_add(upper, lower),
                                wasm_i32x4_splat(FRACTION * FRACTION / 2));
    sum = wasm_u32x4_shr(sum, 16);
    sum = wasm_i16x8_narrow_i32x4(sum, sum);
    uint32_t rgb = (uint32_t)wasm_i32x4_extract_lane(wasm_u8x16_narrow_i16x8(sum, sum), 0);
    return rgb ? rgb : 0x010101;
}

/* `rgb` has room for one byte more. */
static void project_row(const Camera *camera, Image image, int row, uint8_t *rgb) {
    Taps taps;
    for (int column = 0; column < camera->width; column += AT_ONCE) {
        int count = min_int(AT_ONCE, camera->width - column);
        plan(camera, image, column, row, &taps);
        for (int i = 0; i < count; i++, rgb += 3) {
            int at = taps.at[i];
            uint32_t seen = at < 0 ? 0
                                   : sample(image.rgb + at, 3 * image.width, taps.across[i],
                                            taps.down[i]);
            __builtin_memcpy(rgb, &seen, 4);
        }
    }
}

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    Image image;
    Camera camera;
    if (n_in != 2 || n_out != 1 || !read_image(&in[0], MAX_IMAGE_SIDE, &image) ||
        !holds(&in[1], FLOAT32, 1) || in[1].dims[0] != NUMBERS)
        return fail(BAD_INPUT, "project takes image uint8[-1,-1,3] and camera float32[19]", 0, 0);
    if (image.width < MIN_IMAGE_SIDE || image.height < MIN_IMAGE_SIDE)
        return fail(BAD_INPUT, "the image is smaller than # pixels a side", MIN_IMAGE_SIDE, 0);
    if (!read_camera(&in[1], &camera))
        return fail(BAD_INPUT, "the camera has a number that is none, or a patch beyond # pixels",
                    MAX_PATCH_SIDE, 0);
    uint8_t *patch = take((uint64_t)3 * camera.width * camera.height + 1);
    if (!patch) return fail_memory();
    for (int row = 0; row < camera.height; row++)
        project_row(&camera, image, row, patch + (size_t)3 * camera.width * row);
    out->dims[0] = (uint32_t)camera.height;
    out->dims[1] = (uint32_t)camera.width;
    out->dims[2] = 3;
    give(out, patch, UINT8, 3);
    return OK;
}
