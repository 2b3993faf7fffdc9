/* decode: the bytes of an image file -> RGB, brought to the size that the rest of the chain takes.
 *
 *   in   file   uint8[-1]        JPEG, PNG, BMP, GIF (first picture) or PNM
 *   out  image  uint8[-1,-1,3]   height, width, RGB; transparent parts stand on white, a camera's
 *                                picture is upright
 *        size   int32[2]         height and width before that, of the upright picture
 *
 * Sides come to between 30 and 2000 pixels, so that what travels on is bounded. Whoever
 * needs positions in the picture scales by `size`.
 */
#include "orient.h"

/* stb_image forgets to say so in places. */
static int memory_refused;

static void *take_noting(uint64_t size_bytes) {
    void *start = take(size_bytes);
    memory_refused |= !start;
    return start;
}

static void *resize_memory(void *old, uint32_t old_bytes, uint32_t new_bytes);

#define STBI_MALLOC(size) take_noting(size)
#define STBI_REALLOC_SIZED(old, old_bytes, new_bytes) resize_memory(old, old_bytes, new_bytes)
#define STBI_FREE(old) ((void)(old))
#define STBI_ASSERT(truth) ((void)0)
#define STBI_NO_STDIO
#define STBI_NO_THREAD_LOCALS
#ifdef __wasm__
#define STBI_NO_SIMD
#include "sse2.h"
#endif
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_NO_PIC
#define STBI_NO_PSD
#define STBI_NO_TGA
#define STBI_FAILURE_USERMSG
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#define STBI_NO_ZLIB
#include <stb_image.h>

#include "png.h"

enum { MIN_SIDE = 30, MAX_SIDE = 2000, MAX_PIXELS = 50 * 1000 * 1000, MAX_FILE_BYTES = 256 << 20 };

/* Grows in place when nothing was taken since, which is how stb_image collects a PNG's data. */
static void *resize_memory(void *old, uint32_t old_bytes, uint32_t new_bytes) {
    uint32_t start = (uint32_t)(uintptr_t)old;
    if (old && start + ((old_bytes + 15u) & ~15u) == arena_top) {
        arena_top = start;
        return take_noting(new_bytes);
    }
    void *fresh = take_noting(new_bytes);
    if (fresh && old) memcpy(fresh, old, old_bytes < new_bytes ? old_bytes : new_bytes);
    return fresh;
}

/* What stb_image asks for a PNG's data, three times as fast as its own. Interlaced ones take a little
 * more than it expects; beyond that nothing is unpacked. */
char *stbi_zlib_decode_malloc_guesssize_headerflag(const char *buffer, int len, int initial_size,
                                                   int *outlen, int parse_header) {
    if (len < 0 || initial_size < 0 || initial_size > MAX_PIXELS * 8) {
        stbi__err("too large", "Corrupt PNG");
        return 0;
    }
    size_t room = (size_t)initial_size + (size_t)initial_size / 4 + PAGE_BYTES;
    uint8_t *out = take_noting(room + SLACK_BYTES);
    if (!out) return 0;
    int found = inflate((const uint8_t *)buffer, (size_t)len, parse_header, out, room);
    memory_refused |= found == -2;
    if (found < 0) {
        stbi__err("its data is damaged", "Corrupt PNG");
        return 0;
    }
    *outlen = found;
    return (char *)out;
}

/* stb_image fills the missing rest of a JPEG with grey and calls it a success: look for the end
 * marker behind the headers (a thumbnail inside them has one of its own). */
static int is_cut_jpeg(const uint8_t *bytes, uint32_t count) {
    uint32_t at = 2;
    if (count < 4 || bytes[0] != 0xFF || bytes[1] != 0xD8) return 0;
    while (at + 4 <= count && bytes[at] == 0xFF && bytes[at + 1] != 0xDA) {
        if (bytes[at + 1] == 0xFF) at += 1;
        else at += 2 + ((uint32_t)bytes[at + 2] << 8 | bytes[at + 3]);
    }
    for (; at + 1 < count; at++)
        if (bytes[at] == 0xFF && bytes[at + 1] == 0xD9) return 0;
    return 1;
}

/* Drops alpha in place: what is transparent shows white paper. */
static void lay_on_white(uint8_t *pixels, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t alpha = pixels[4 * i + 3];
        for (int channel = 0; channel < 3; channel++) {
            uint32_t mixed = pixels[4 * i + channel] * alpha + 255u * (255u - alpha);
            pixels[3 * i + channel] = (uint8_t)((mixed + 127u) / 255u);
        }
    }
}

/* The size the chain works on: the sides as they are, or scaled into bounds and to multiples of 32
 * (as the models' own pipeline does). Where no scale satisfies both bounds, the upper one holds. */
static void bound_size(int *width, int *height) {
    int small = min_int(*width, *height), large = max_int(*width, *height);
    double ratio = (double)MAX_SIDE / large;
    if (large <= MAX_SIDE) {
        if (small >= MIN_SIDE) return;
        ratio = __builtin_fmin(ratio, (double)MIN_SIDE / small);
    }
    *width = round_to_32((int)(*width * ratio));
    *height = round_to_32((int)(*height * ratio));
}

static int check_size(uint32_t width, uint32_t height) {
    if (width < 1 || height < 1) return fail(BAD_INPUT, "the image has no pixels", 0, 0);
    if ((uint64_t)width * height <= MAX_PIXELS) return OK;
    return fail(TOO_LARGE, "the image has # x # pixels, the limit is 50 million in all", width,
                height);
}

static int check_file(const Port *file, int *width, int *height, int *channels) {
    const uint8_t *bytes = tensor(file);
    if (file->size_bytes == 0) return fail(BAD_INPUT, "the image file is empty", 0, 0);
    if (file->size_bytes > MAX_FILE_BYTES)
        return fail(TOO_LARGE, "the image file has # bytes, the limit is #", file->size_bytes,
                    MAX_FILE_BYTES);
    /* stb_image takes a PNG of absurd size for no PNG at all: look first, to say what is wrong */
    if (file->size_bytes >= 24 && memcmp(bytes, "\x89PNG\r\n\x1a\n", 8) == 0) {
        int code = check_size(big_endian(bytes + 16), big_endian(bytes + 20));
        if (code) return code;
    }
    if (!stbi_info_from_memory(bytes, (int)file->size_bytes, width, height, channels))
        return fail(BAD_INPUT, "the file is no JPEG, PNG, BMP, GIF or PNM image, or it is damaged",
                    0, 0);
    int code = check_size((uint32_t)*width, (uint32_t)*height);
    if (code) return code;
    if (is_cut_jpeg(bytes, file->size_bytes))
        return fail(BAD_INPUT, "the JPEG file is cut short: it has no end marker", 0, 0);
    return OK;
}

static int too_heavy(int width, int height) {
    return fail(NO_MEMORY,
                "the image of # x # pixels takes more memory than this task may use: "
                "make it smaller",
                (uint32_t)width, (uint32_t)height);
}

static int say_why(int width, int height) {
    if (memory_refused) return too_heavy(width, height);
    const char *reason = stbi_failure_reason();
    fail(BAD_INPUT, "the image cannot be decoded: ", 0, 0);
    size_t used = strlen(error_text);
    strncpy(error_text + used, reason ? reason : "unknown", sizeof error_text - 1 - used);
    return BAD_INPUT;
}

/* The pixels of a file, as they lie in it; 0: `say_why` does. */
static uint8_t *load(const Port *file, int *width, int *height, int channels) {
    Image image = {0};
    switch (read_png((uint8_t *)(uintptr_t)file->data, file->size_bytes, &image)) {
    case PNG_READ: return image.rgb;
    case PNG_NO_MEMORY: memory_refused = 1; return 0;
    case PNG_DAMAGED: stbi__err("its data is damaged", "Corrupt PNG"); return 0;
    default: break;
    }
    int wanted = channels == 2 || channels == 4 ? 4 : 3;
    uint8_t *pixels = stbi_load_from_memory(tensor(file), (int)file->size_bytes, width, height,
                                            &channels, wanted);
    if (pixels && wanted == 4) lay_on_white(pixels, (size_t)*width * (size_t)*height);
    return pixels;
}

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    if (n_in != 1 || n_out != 2 || !holds(in, UINT8, 1))
        return fail(BAD_INPUT, "decode takes one file uint8[-1] and gives image and size", 0, 0);
    int width, height, channels;
    int code = check_file(in, &width, &height, &channels);
    if (code) return code;
    int *size = take(2 * sizeof(int));
    if (!size) return too_heavy(width, height);
    int kept_width = width, kept_height = height; /* a failure may leave them undefined */
    uint8_t *pixels = load(in, &width, &height, channels);
    if (!pixels) return say_why(kept_width, kept_height);
    Image image = {pixels, width, height}, bounded = image;
    bound_size(&bounded.width, &bounded.height);
    if (bounded.width != width || bounded.height != height) {
        bounded.rgb = take((uint64_t)3 * bounded.width * bounded.height);
        if (!bounded.rgb || !resize(image, bounded)) return too_heavy(width, height);
    }
    int orientation = jpeg_orientation(tensor(in), in->size_bytes), turned = orientation >= 5;
    bounded = set_upright(bounded, orientation);
    if (!bounded.rgb) return too_heavy(width, height);
    size[0] = turned ? width : height, size[1] = turned ? height : width;
    out[0].dims[0] = (uint32_t)bounded.height;
    out[0].dims[1] = (uint32_t)bounded.width;
    out[0].dims[2] = 3;
    give(&out[0], bounded.rgb, UINT8, 3);
    out[1].dims[0] = 2;
    give(&out[1], size, INT32, 1);
    return OK;
}
