/* The usual PNG of a camera: 8-bit RGB, not interlaced. Everything else is left to stb_image.
 *
 * The data of the picture's chunks is moved together where it lies, unpacked once, and each row is
 * brought to its place in the memory it was unpacked to: beside the file one picture is all it takes.
 */
#ifndef TONA_PNG_H
#define TONA_PNG_H

#include "image.h"
#include "inflate.h"

enum {
    PNG_NO_MEMORY = -2,
    PNG_DAMAGED = -1,
    PNG_OTHER = 0,
    PNG_READ = 1,
    PNG_HEAD_BYTES = 33, /* signature and first chunk */
    PNG_CHUNK_BYTES = 12,
    PNG_LEAD_BYTES = 16 /* by what rows at least come from behind the place they go to */
};
enum { FILTER_NONE, FILTER_SUB, FILTER_UP, FILTER_MEAN, FILTER_PAETH };

static inline uint32_t big_endian(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static int png_is_plain(const uint8_t *bytes, uint32_t count) {
    static const uint8_t FORM[5] = {8, 2, 0, 0, 0};
    return count > PNG_HEAD_BYTES && memcmp(bytes, "\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 16) == 0 &&
           memcmp(bytes + 24, FORM, sizeof FORM) == 0;
}

/* Where the chunk at `at` ends; 0: not within the file. */
static uint32_t png_chunk_end(const uint8_t *bytes, uint32_t count, uint32_t at) {
    if (count - at < PNG_CHUNK_BYTES) return 0;
    uint32_t length = big_endian(bytes + at);
    return length > count - at - PNG_CHUNK_BYTES ? 0 : at + PNG_CHUNK_BYTES + length;
}

/* Whether chunks that are known follow each other up to the last one. */
static int png_is_whole(const uint8_t *bytes, uint32_t count) {
    int has_data = 0;
    for (uint32_t at = PNG_HEAD_BYTES, end; (end = png_chunk_end(bytes, count, at)); at = end) {
        const uint8_t *kind = bytes + at + 4;
        if (memcmp(kind, "IEND", 4) == 0) return has_data;
        int is_data = memcmp(kind, "IDAT", 4) == 0;
        if (!is_data && !(kind[0] & 32) && memcmp(kind, "PLTE", 4) != 0) return 0;
        has_data |= is_data;
    }
    return 0;
}

/* Moves the data of all chunks to where that of the first begins; how much it is. */
static uint32_t png_gather(uint8_t *bytes, uint32_t count, uint8_t **data) {
    uint8_t *next = 0;
    for (uint32_t at = PNG_HEAD_BYTES, end; (end = png_chunk_end(bytes, count, at)); at = end) {
        if (memcmp(bytes + at + 4, "IEND", 4) == 0) break;
        if (memcmp(bytes + at + 4, "IDAT", 4) != 0) continue;
        uint32_t length = end - at - PNG_CHUNK_BYTES;
        if (!next) *data = next = bytes + at + 8;
        __builtin_memmove(next, bytes + at + 8, length);
        next += length;
    }
    return (uint32_t)(next - *data);
}

/* Each pixel is the sum of all before it: four at a time. Up to 15 bytes behind the row are read and
 * written, which the next row overwrites. */
static void unfilter_sub(uint8_t *row, const uint8_t *from, int count) {
    const v128_t none = wasm_i32x4_splat(0);
    v128_t before = none;
    for (int i = 0; i < count; i += 12) {
        v128_t sum = wasm_v128_load(from + i);
        sum = wasm_i8x16_add(sum, wasm_i8x16_shuffle(none, sum, 0, 0, 0, 16, 17, 18, 19, 20, 21, 22,
                                                     23, 24, 25, 26, 27, 28));
        sum = wasm_i8x16_add(sum, wasm_i8x16_shuffle(none, sum, 0, 0, 0, 0, 0, 0, 16, 17, 18, 19,
                                                     20, 21, 22, 23, 24, 25));
        sum = wasm_i8x16_add(sum, before);
        wasm_v128_store(row + i, sum);
        before = wasm_i8x16_shuffle(sum, sum, 9, 10, 11, 9, 10, 11, 9, 10, 11, 9, 10, 11, 9, 10, 11,
                                    9);
    }
}

static void unfilter_up(uint8_t *row, const uint8_t *from, const uint8_t *above, int count) {
    for (int i = 0; i < count; i += 16)
        wasm_v128_store(row + i,
                        wasm_i8x16_add(wasm_v128_load(from + i), wasm_v128_load(above + i)));
}

static inline int paeth(int left, int above, int corner) {
    int by_left = above - corner, by_above = left - corner, by_corner = by_left + by_above;
    if (by_left < 0) by_left = -by_left;
    if (by_above < 0) by_above = -by_above;
    if (by_corner < 0) by_corner = -by_corner;
    int nearer = by_above <= by_corner ? above : corner;
    return by_left <= by_above && by_left <= by_corner ? left : nearer;
}

static void unfilter_mean(uint8_t *row, const uint8_t *from, const uint8_t *above, int count) {
    for (int i = 0; i < count; i++) {
        int left = i < 3 ? 0 : row[i - 3];
        row[i] = (uint8_t)(from[i] + (left + above[i]) / 2);
    }
}

static void unfilter_paeth(uint8_t *row, const uint8_t *from, const uint8_t *above, int count) {
    int left[3] = {0}, corner[3] = {0};
    for (int i = 0; i < count; i += 3)
        for (int channel = 0; channel < 3; channel++) {
            int over = above[i + channel];
            int sum = from[i + channel] + paeth(left[channel], over, corner[channel]);
            row[i + channel] = (uint8_t)sum;
            left[channel] = (uint8_t)sum, corner[channel] = over;
        }
}

/* What the rows say is the difference to their neighbours becomes pixels; 0: an unknown filter. */
static int png_unfilter(uint8_t *pixels, const uint8_t *from, const uint8_t *none, int width,
                        int height) {
    int count = 3 * width;
    for (int y = 0; y < height; y++, pixels += count, from += count) {
        const uint8_t *above = y ? pixels - count : none;
        switch (*from++) {
        case FILTER_NONE: __builtin_memmove(pixels, from, (size_t)count); break;
        case FILTER_SUB: unfilter_sub(pixels, from, count); break;
        case FILTER_UP: unfilter_up(pixels, from, above, count); break;
        case FILTER_MEAN: unfilter_mean(pixels, from, above, count); break;
        case FILTER_PAETH: unfilter_paeth(pixels, from, above, count); break;
        default: return 0;
        }
    }
    return 1;
}

/* Reads a picture of the usual form; `bytes` is used up unless it is another one. Its sides have been
 * looked at. */
static int read_png(uint8_t *bytes, uint32_t count, Image *image) {
    if (!png_is_plain(bytes, count) || !png_is_whole(bytes, count)) return PNG_OTHER;
    int width = (int)big_endian(bytes + 16), height = (int)big_endian(bytes + 20);
    size_t row = (size_t)3 * (size_t)width, room = (row + 1) * (size_t)height;
    uint8_t *pixels = take(PNG_LEAD_BYTES + room + SLACK_BYTES), *none = take(row + 16);
    if (!pixels || !none) return PNG_NO_MEMORY;
    __builtin_memset(none, 0, row + 16);
    uint8_t *data, *rows = pixels + PNG_LEAD_BYTES;
    uint32_t size = png_gather(bytes, count, &data);
    int found = inflate(data, size, 1, rows, room);
    if (found == -2) return PNG_NO_MEMORY;
    if (found < 0 || (size_t)found < room) return PNG_DAMAGED;
    if (!png_unfilter(pixels, rows, none, width, height)) return PNG_DAMAGED;
    *image = (Image){pixels, width, height};
    return PNG_READ;
}

#endif
