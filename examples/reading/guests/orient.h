/* Which way up a camera held the picture: the orientation tag of Exif in a JPEG file. */
#ifndef TONA_ORIENT_H
#define TONA_ORIENT_H

#include "image.h"

enum { UPRIGHT = 1, TAG_ORIENTATION = 0x0112, MAX_TAGS = 512 };

/* Exif is a TIFF file in a segment: numbers stand in the byte order it names. */
typedef struct {
    const uint8_t *bytes;
    uint32_t count;
    int big_endian;
} Tiff;

/* A number of 1 to 4 bytes; 0 beyond the end. */
static inline uint32_t tiff_number(const Tiff *tiff, uint32_t at, uint32_t bytes) {
    uint32_t value = 0;
    if (at > tiff->count || tiff->count - at < bytes) return 0;
    for (uint32_t i = 0; i < bytes; i++)
        value |= (uint32_t)tiff->bytes[at + i] << 8 * (tiff->big_endian ? bytes - 1 - i : i);
    return value;
}

static inline int tiff_orientation(const uint8_t *bytes, uint32_t count) {
    Tiff tiff = {bytes, count, count > 0 && bytes[0] == 'M'};
    uint32_t at = tiff_number(&tiff, 4, 4), tags = tiff_number(&tiff, at, 2);
    for (uint32_t i = 0; i < tags && i < MAX_TAGS; i++) {
        uint32_t entry = at + 2 + 12 * i;
        if (tiff_number(&tiff, entry, 2) != TAG_ORIENTATION) continue;
        uint32_t value = tiff_number(&tiff, entry + 8, 2);
        return value >= 1 && value <= 8 ? (int)value : UPRIGHT;
    }
    return UPRIGHT;
}

/* 1 to 8 as Exif counts; 1, upright, for what is no JPEG or does not say. */
static inline int jpeg_orientation(const uint8_t *bytes, uint32_t count) {
    uint32_t at = 2;
    if (count < 4 || bytes[0] != 0xFF || bytes[1] != 0xD8) return UPRIGHT;
    while (at + 10 <= count && bytes[at] == 0xFF && bytes[at + 1] != 0xDA) {
        uint32_t size = (uint32_t)bytes[at + 2] << 8 | bytes[at + 3];
        if (bytes[at + 1] == 0xE1 && size >= 8 && size <= count - at - 2 &&
            __builtin_memcmp(bytes + at + 4, "Exif\0", 6) == 0)
            return tiff_orientation(bytes + at + 10, size - 8);
        at += bytes[at + 1] == 0xFF ? 1 : 2 + size;
    }
    return UPRIGHT;
}

/* The picture as it was seen; its pixels are 0 when there is no memory. */
static inline Image set_upright(Image from, int orientation) {
    if (orientation == UPRIGHT) return from;
    int turned = orientation >= 5;
    int mirror_x = orientation == 2 || orientation == 3 || orientation >= 7;
    int mirror_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    Image to = {take((uint64_t)3 * from.width * from.height), turned ? from.height : from.width,
                turned ? from.width : from.height};
    for (int y = 0; to.rgb && y < to.height; y++)
        for (int x = 0; x < to.width; x++) {
            int at_x = turned ? y : x, at_y = turned ? x : y;
            if (mirror_x) at_x = from.width - 1 - at_x;
            if (mirror_y) at_y = from.height - 1 - at_y;
            const uint8_t *in = from.rgb + 3 * ((size_t)at_y * from.width + at_x);
            uint8_t *out = to.rgb + 3 * ((size_t)y * to.width + x);
            out[0] = in[0], out[1] = in[1], out[2] = in[2];
        }
    return to;
}

#endif
