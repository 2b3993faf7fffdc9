/* @cwasm/lodepng: a PNG file becomes pixels, uint8[rows, columns, 4]. */
#include "shim.h"

IMPORT("malloc") uint32_t library_malloc(uint32_t size);
IMPORT("lodepng_decode32") uint32_t decode32(
    uint32_t out, uint32_t width, uint32_t height, uint32_t in, uint32_t size);

EXPORT("tona_alloc") uint32_t tona_alloc(uint32_t size) {
    return aligned(library_malloc(size + 15));
}

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    (void)n_in, (void)n_out;
    uint32_t found = library_malloc(12);
    if (!found) return NO_MEMORY;
    uint32_t error = decode32(found, found + 4, found + 8, in->data, in->size_bytes);
    if (error) return (int)error;
    const uint32_t *told = address(found);
    out->data = told[0];
    out->dims[0] = told[2];
    out->dims[1] = told[1];
    out->size_bytes = told[1] * told[2] * 4;
    return OK;
}
