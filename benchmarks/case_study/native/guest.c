/* A guest of the ABI "tona-core-1" as a shared library: the same source as the Wasm module, compiled
 * for this machine, so that what the ways are compared by is not their code.
 *
 *   cc -O3 -march=native -shared -fPIC -I native -DGUEST='"decode.c"' native/guest.c
 *
 * Descriptors hold addresses of 32 bits: the arena lies in the second
 * gigabyte, where ten of this size have room.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <sys/mman.h>

enum { ARENA_BYTES = 64 << 20, ARENA_PAGE_BYTES = 1 << 16 };

static uint8_t *arena;

#define __builtin_wasm_memory_size(memory) \
    ((ARENA_BYTES + (uintptr_t)arena) / ARENA_PAGE_BYTES)
#define __builtin_wasm_memory_grow(memory, pages) ((void)(pages), -1ul)

unsigned char __heap_base;

#include GUEST

/* Gives a guest fresh pages, as every call gets in an instance of its own; 0 when there are none. */
int native_begin(void) {
    if (!arena) {
        void *found = mmap(0, ARENA_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_32BIT, -1, 0);
        if (found == MAP_FAILED) return 0;
        arena = found;
    } else {
        madvise(arena, arena_top - (uint32_t)(uintptr_t)arena, MADV_DONTNEED);
    }
    arena_top = (uint32_t)(uintptr_t)arena;
    return 1;
}
