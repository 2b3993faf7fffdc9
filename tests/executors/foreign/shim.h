/* A program that is linked with somebody else's module and lives in that one's memory.
 *
 * The module is linked under the name `env`, which is where the linker has an imported memory come
 *from. What the module keeps where is its own business, so a shim has neither data nor a stack: every
 *byte that it needs is asked for.
 */
#ifndef TONA_SHIM_H
#define TONA_SHIM_H

#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(name), used))
#define IMPORT(name) __attribute__((import_module("env"), import_name(name))) extern

enum { UINT8 = 2, INT32 = 6 };
enum { OK = 0, NO_MEMORY = 1001 };

typedef struct {
    uint32_t data;
    uint32_t size_bytes;
    uint32_t dtype;
    uint32_t rank;
    uint32_t dims[8];
} Port;

static inline void *address(uint32_t at) { return (void *)(uintptr_t)at; }

static inline uint32_t aligned(uint32_t address) { return address ? (address + 15u) & ~15u : 0; }

#endif
