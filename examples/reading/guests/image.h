/* RGB images, and the resize that the detector and the recogniser were trained behind. */
#ifndef TONA_IMAGE_H
#define TONA_IMAGE_H

#include <wasm_simd128.h>

#include "guest.h"

typedef struct {
    uint8_t *rgb;
    int width;
    int height;
} Image;

static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int max_int(int a, int b) { return a > b ? a : b; }
static inline int clamp_int(int value, int low, int high) {
    return max_int(low, min_int(value, high));
}

/* The nearest multiple of 32, halves to even, at least 32: the stride of the detector. */
static inline int round_to_32(int side) {
    return max_int(32, (int)(__builtin_rint(side / 32.0) * 32.0));
}

/* What one output coordinate takes from the source: two neighbours and their weights in 1/2048. */
typedef struct {
    int32_t first;
    int32_t second;
    int32_t first_weight;
    int32_t second_weight;
} Tap;

static inline void plan_taps(Tap *taps, int source, int target) {
    double scale = (double)source / target;
    for (int i = 0; i < target; i++) {
        float at = (float)((i + 0.5) * scale - 0.5);
        int first = (int)__builtin_floorf(at);
        float part = at - (float)first;
        if (first < 0) first = 0, part = 0;
        if (first >= source - 1) first = source - 1, part = 0;
        taps[i].first = first;
        taps[i].second = min_int(first + 1, source - 1);
        taps[i].first_weight = (int32_t)__builtin_rintf((1.0f - part) * 2048.0f);
        taps[i].second_weight = (int32_t)__builtin_rintf(part * 2048.0f);
    }
}

static inline void widen_row(int32_t *row, const uint8_t *rgb, const Tap *taps, int width) {
    for (int x = 0; x < width; x++) {
        const uint8_t *a = rgb + 3 * taps[x].first;
        const uint8_t *b = rgb + 3 * taps[x].second;
        int32_t wa = taps[x].first_weight, wb = taps[x].second_weight;
        row[3 * x] = a[0] * wa + b[0] * wb;
        row[3 * x + 1] = a[1] * wa + b[1] * wb;
        row[3 * x + 2] = a[2] * wa + b[2] * wb;
    }
}

/* A sixteenth of a value has 15 bits, so that its product is that of the lower half of its lane. */
static inline v128_t blend_four(const int32_t *upper, const int32_t *lower, v128_t wa, v128_t wb) {
    v128_t above = wasm_u32x4_shr(wasm_v128_load(upper), 4);
    v128_t below = wasm_u32x4_shr(wasm_v128_load(lower), 4);
    v128_t sum = wasm_i32x4_add(wasm_u32x4_shr(wasm_i32x4_dot_i16x8(above, wa), 16),
                                wasm_u32x4_shr(wasm_i32x4_dot_i16x8(below, wb), 16));
    return wasm_u32x4_shr(wasm_i32x4_add(sum, wasm_i32x4_splat(2)), 2);
}

static inline v128_t blend_eight(const int32_t *upper, const int32_t *lower, int32_t wa, int32_t wb) {
    v128_t above = wasm_i32x4_splat(wa), below = wasm_i32x4_splat(wb);
    return wasm_i16x8_narrow_i32x4(blend_four(upper, lower, above, below),
                                   blend_four(upper + 4, lower + 4, above, below));
}

/* Bilinear, pixel centres aligned, in OpenCV's 8-bit fixed point (the models' own resize).
 * `target.rgb` has room for the result. 0 when there is no memory. */
static inline int resize(Image source, Image target) {
    int width = target.width, height = target.height;
    Tap *across = take((uint64_t)width * sizeof(Tap));
    Tap *down = take((uint64_t)height * sizeof(Tap));
    int32_t *upper = take((uint64_t)width * 3 * sizeof(int32_t));
    int32_t *lower = take((uint64_t)width * 3 * sizeof(int32_t));
    if (!across || !down || !upper || !lower) return 0;
    plan_taps(across, source.width, width);
    plan_taps(down, source.height, height);
    int upper_is = -1, lower_is = -1;
    for (int y = 0; y < height; y++) {
        Tap tap = down[y];
        if (tap.first == lower_is) {
            int32_t *swap = upper;
            upper = lower, lower = swap;
            upper_is = lower_is, lower_is = -1;
        }
        if (tap.first != upper_is) {
            widen_row(upper, source.rgb + (size_t)3 * source.width * tap.first, across, width);
            upper_is = tap.first;
        }
        if (tap.second != lower_is) {
            widen_row(lower, source.rgb + (size_t)3 * source.width * tap.second, across, width);
            lower_is = tap.second;
        }
        uint8_t *out = target.rgb + (size_t)3 * width * y;
        int32_t wa = tap.first_weight, wb = tap.second_weight;
        int i = 0;
        for (; i + 16 <= 3 * width; i += 16) {
            v128_t low = blend_eight(upper + i, lower + i, wa, wb);
            v128_t high = blend_eight(upper + i + 8, lower + i + 8, wa, wb);
            wasm_v128_store(out + i, wasm_u8x16_narrow_i16x8(low, high));
        }
        for (; i < 3 * width; i++) {
            int32_t sum = ((wa * (upper[i] >> 4)) >> 16) + ((wb * (lower[i] >> 4)) >> 16);
            out[i] = (uint8_t)((sum + 2) >> 2);
        }
    }
    return 1;
}

static inline float scale_value(uint8_t value) {
    return ((float)value * (1 / 255.0f) - 0.5f) * 2.0f;
}

/* Four pixels of one channel: the shuffle spreads bytes 3 apart to lanes of 32 bits; an index
 * beyond the 16 bytes (-1) gives 0. */
static inline v128_t scale_four(v128_t pixels, v128_t lanes) {
    v128_t value = wasm_f32x4_convert_i32x4(wasm_i8x16_swizzle(pixels, lanes));
    value = wasm_f32x4_sub(wasm_f32x4_mul(value, wasm_f32x4_splat(1 / 255.0f)),
                           wasm_f32x4_splat(0.5f));
    return wasm_f32x4_add(value, value);
}

/* Pixels to -1..1 in three planes, blue first: the models were trained on OpenCV's channel order.
 * A plane's rows are `stride` floats apart. */
static inline void normalise(Image image, float *planes, int stride) {
    const v128_t red = wasm_i8x16_make(0, -1, -1, -1, 3, -1, -1, -1, 6, -1, -1, -1, 9, -1, -1, -1);
    const v128_t green = wasm_i8x16_add(red, wasm_i32x4_splat(1));
    const v128_t blue = wasm_i8x16_add(red, wasm_i32x4_splat(2));
    size_t plane = (size_t)image.height * stride;
    for (int y = 0; y < image.height; y++) {
        const uint8_t *row = image.rgb + (size_t)3 * image.width * y;
        float *out = planes + (size_t)y * stride;
        int x = 0;
        /* 16 bytes are read for 12: stop where they would reach beyond the row */
        for (; x + 6 <= image.width; x += 4) {
            v128_t pixels = wasm_v128_load(row + 3 * x);
            wasm_v128_store(out + x, scale_four(pixels, blue));
            wasm_v128_store(out + plane + x, scale_four(pixels, green));
            wasm_v128_store(out + 2 * plane + x, scale_four(pixels, red));
        }
        for (; x < image.width; x++)
            for (int channel = 0; channel < 3; channel++)
                out[(2 - channel) * plane + x] = scale_value(row[3 * x + channel]);
    }
}

/* The detector looks at a canvas: the image between black bars where it is so long or so flat that
 * one line of text would fill its height (sideways the same, which bounds the detector's input). */
enum { CANVAS_MIN_SIDE = 30, CANVAS_MAX_RATIO = 8 };

static inline int bar_for(int side, int other) {
    if (side > CANVAS_MIN_SIDE && other <= CANVAS_MAX_RATIO * side) return 0;
    int wanted = max_int(other / CANVAS_MAX_RATIO, CANVAS_MIN_SIDE) * 2;
    return (wanted > side ? wanted - side : side - wanted) / 2;
}

/* Fills `canvas` and the width of its bars; `rgb` is 0 when there is no memory. */
static inline Image make_canvas(Image image, int *left, int *top) {
    *top = bar_for(image.height, image.width);
    *left = bar_for(image.width, image.height);
    Image canvas = image;
    if (*top == 0 && *left == 0) return canvas;
    canvas.width += 2 * *left;
    canvas.height += 2 * *top;
    canvas.rgb = take((uint64_t)3 * canvas.width * canvas.height);
    if (!canvas.rgb) return canvas;
    __builtin_memset(canvas.rgb, 0, (size_t)3 * canvas.width * canvas.height);
    for (int y = 0; y < image.height; y++) {
        size_t at = (size_t)(*top + y) * canvas.width + *left;
        __builtin_memcpy(canvas.rgb + 3 * at, image.rgb + (size_t)3 * image.width * y,
                         (size_t)3 * image.width);
    }
    return canvas;
}

/* Reads an RGB port uint8[height,width,3] of at most `max_side`; 0 when it is none. */
static inline int read_image(const Port *port, int max_side, Image *image) {
    if (!holds(port, UINT8, 3) || port->dims[2] != 3) return 0;
    uint32_t height = port->dims[0], width = port->dims[1];
    if (height < 1 || width < 1 || height > (uint32_t)max_side || width > (uint32_t)max_side)
        return 0;
    *image = (Image){(uint8_t *)(uintptr_t)port->data, (int)width, (int)height};
    return 1;
}

#endif
