/* Guest side of the ABI "tona-core-1": tensors in, tensors out, no imports.
 *
 * The host instantiates the module afresh for every call, writes the input tensors into memory it
 *asked for with tona_alloc, and calls tona_run. So memory is only ever taken, never given back,
 *and no state survives a call. What the guest returns stays in its own memory until the instance
 *is dropped.
 */
#ifndef TONA_GUEST_H
#define TONA_GUEST_H

#include <stddef.h>
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(name), used))
#define PAGE_BYTES 65536u

/* Element types: the numbers of ONNX TensorProto.DataType. */
enum { FLOAT32 = 1, UINT8 = 2, INT32 = 6 };

/* Results of tona_run. */
enum { OK = 0, BAD_INPUT = 1, TOO_LARGE = 2, NO_MEMORY = 3 };

typedef struct {
    uint32_t data;
    uint32_t size_bytes;
    uint32_t dtype;
    uint32_t rank;
    uint32_t dims[8];
} Port;

_Static_assert(sizeof(Port) == 48, "the descriptor is 48 bytes on the wire");

extern unsigned char __heap_base;
static uint32_t arena_top;
static char error_text[512];

/* Takes memory, 16-byte aligned; 0 when the host grants no more. Fresh pages are zero. */
static inline void *take(uint64_t size_bytes) {
    if (arena_top == 0) arena_top = ((uint32_t)(uintptr_t)&__heap_base + 15u) & ~15u;
    uint64_t end = arena_top + ((size_bytes + 15u) & ~(uint64_t)15u);
    if (size_bytes > UINT32_MAX || end > UINT32_MAX) return 0;
    uint32_t have = (uint32_t)__builtin_wasm_memory_size(0);
    uint32_t want = (uint32_t)((end + PAGE_BYTES - 1) / PAGE_BYTES);
    if (want > have && __builtin_wasm_memory_grow(0, want - have) == (unsigned long)-1) return 0;
    void *start = (void *)(uintptr_t)arena_top;
    arena_top = (uint32_t)end;
    return start;
}

EXPORT("tona_alloc") uint32_t tona_alloc(uint32_t size_bytes) {
    return (uint32_t)(uintptr_t)take(size_bytes);
}

EXPORT("tona_error") uint32_t tona_error(void) { return (uint32_t)(uintptr_t)error_text; }

static inline char *put_number(char *at, const char *end, uint32_t value) {
    char digits[10];
    int count = 0;
    do digits[count++] = (char)('0' + value % 10);
    while (value /= 10);
    while (count && at < end) *at++ = digits[--count];
    return at;
}

/* Keeps a sentence for tona_error and returns the code; each '#' becomes the next number. */
static inline int fail(int code, const char *sentence, uint32_t first, uint32_t second) {
    char *at = error_text;
    const char *end = error_text + sizeof error_text - 1;
    for (; *sentence && at < end; sentence++) {
        if (*sentence == '#') {
            at = put_number(at, end, first);
            first = second;
        } else {
            *at++ = *sentence;
        }
    }
    *at = 0;
    return code;
}

static inline int fail_memory(void) {
    return fail(NO_MEMORY, "the memory granted does not suffice", 0, 0);
}

static inline uint32_t item_bytes(uint32_t dtype) { return dtype == UINT8 ? 1 : 4; }

/* Whether a port holds a tensor of this type and rank whose axes agree with its size. */
static inline int holds(const Port *port, uint32_t dtype, uint32_t rank) {
    if (port->dtype != dtype || port->rank != rank) return 0;
    uint64_t size = item_bytes(dtype);
    for (uint32_t axis = 0; axis < rank; axis++) {
        size *= port->dims[axis];
        if (size > UINT32_MAX) return 0;
    }
    return size == port->size_bytes;
}

static inline const void *tensor(const Port *port) {
    return (const void *)(uintptr_t)port->data;
}

/* Fills a descriptor; the caller sets the axes before. */
static inline void give(Port *port, const void *data, uint32_t dtype, uint32_t rank) {
    uint32_t size = item_bytes(dtype);
    for (uint32_t axis = 0; axis < rank; axis++) size *= port->dims[axis];
    port->data = (uint32_t)(uintptr_t)data;
    port->size_bytes = size;
    port->dtype = dtype;
    port->rank = rank;
}

#endif
