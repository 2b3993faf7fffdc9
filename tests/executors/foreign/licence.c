/* eu-licence-validator: a plate and the country's two letters, as text; 1 where they are valid. */
#include "shim.h"

IMPORT("alloc") uint32_t library_alloc(uint32_t size);
IMPORT("validate") int32_t validate(
    uint32_t plate, uint32_t plate_size, uint32_t country, uint32_t country_size);

EXPORT("tona_alloc") uint32_t tona_alloc(uint32_t size) { return aligned(library_alloc(size + 15)); }

/* A copy where the library has it from its own alloc: it knows no others. */
static inline uint32_t known(const Port *text) {
    uint32_t copy = library_alloc(text->size_bytes);
    if (copy) __builtin_memcpy(address(copy), address(text->data), text->size_bytes);
    return copy;
}

EXPORT("tona_run") int tona_run(const Port *in, uint32_t n_in, Port *out, uint32_t n_out) {
    (void)n_in, (void)n_out;
    uint32_t plate = known(&in[0]), country = known(&in[1]), valid = library_alloc(4);
    if (!plate || !country || !valid) return NO_MEMORY;
    *(int32_t *)address(valid) = validate(plate, in[0].size_bytes, country, in[1].size_bytes);
    out->data = valid;
    out->size_bytes = 4;
    return OK;
}
