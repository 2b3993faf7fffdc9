/* The operations of SSE2 with which stb_image decodes JPEG, in Wasm's vectors of the same width: the
 * same numbers as without, to the last bit. Include it before stb_image.h, with STBI_NO_SIMD, for
 * what that leaves out stands here.
 */
#ifndef TONA_GUEST_SSE2_H
#define TONA_GUEST_SSE2_H

#include <wasm_simd128.h>

#define STBI_SSE2
#define STBI_SIMD_ALIGN(type, name) type name __attribute__((aligned(16)))

static int stbi__sse2_available(void) { return 1; }

typedef v128_t __m128i;

#define _mm_setzero_si128() wasm_i64x2_const_splat(0)
#define _mm_set1_epi8(a) wasm_i8x16_splat(a)
#define _mm_set1_epi16(a) wasm_i16x8_splat(a)
#define _mm_set1_epi32(a) wasm_i32x4_splat(a)
#define _mm_setr_epi16(...) wasm_i16x8_make(__VA_ARGS__)
#define _mm_insert_epi16(a, value, lane) wasm_i16x8_replace_lane(a, lane, value)

#define _mm_load_si128(at) wasm_v128_load(at)
#define _mm_loadl_epi64(at) wasm_v128_load64_zero(at)
#define _mm_storeu_si128(at, a) wasm_v128_store(at, a)
#define _mm_storel_epi64(at, a) wasm_v128_store64_lane(at, a, 0)

#define _mm_add_epi16(a, b) wasm_i16x8_add(a, b)
#define _mm_sub_epi16(a, b) wasm_i16x8_sub(a, b)
#define _mm_add_epi32(a, b) wasm_i32x4_add(a, b)
#define _mm_sub_epi32(a, b) wasm_i32x4_sub(a, b)
#define _mm_madd_epi16(a, b) wasm_i32x4_dot_i16x8(a, b)
#define _mm_mulhi_epi16(a, b)                                                                      \
    wasm_i16x8_shuffle(wasm_i32x4_extmul_low_i16x8(a, b), wasm_i32x4_extmul_high_i16x8(a, b), 1, 3, \
                       5, 7, 9, 11, 13, 15)
#define _mm_xor_si128(a, b) wasm_v128_xor(a, b)

#define _mm_slli_epi16(a, count) wasm_i16x8_shl(a, count)
#define _mm_srli_epi16(a, count) wasm_u16x8_shr(a, count)
#define _mm_srai_epi16(a, count) wasm_i16x8_shr(a, count)
#define _mm_srai_epi32(a, count) wasm_i32x4_shr(a, count)

#define _mm_packs_epi32(a, b) wasm_i16x8_narrow_i32x4(a, b)
#define _mm_packus_epi16(a, b) wasm_u8x16_narrow_i16x8(a, b)
#define _mm_unpacklo_epi8(a, b) \
    wasm_i8x16_shuffle(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define _mm_unpackhi_epi8(a, b) \
    wasm_i8x16_shuffle(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define _mm_unpacklo_epi16(a, b) wasm_i16x8_shuffle(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define _mm_unpackhi_epi16(a, b) wasm_i16x8_shuffle(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#define _mm_shuffle_epi32(a, order)                                                              \
    wasm_i32x4_shuffle(a, a, (order) & 3, (order) >> 2 & 3, (order) >> 4 & 3, (order) >> 6 & 3)
#define BYTES_FROM(a, b, at)                                                                    \
    wasm_i8x16_shuffle(a, b, at, at + 1, at + 2, at + 3, at + 4, at + 5, at + 6, at + 7, at + 8, \
                       at + 9, at + 10, at + 11, at + 12, at + 13, at + 14, at + 15)
#define _mm_slli_si128(a, bytes) BYTES_FROM(_mm_setzero_si128(), a, 16 - (bytes))
#define _mm_srli_si128(a, bytes) BYTES_FROM(a, _mm_setzero_si128(), (bytes))

#endif
