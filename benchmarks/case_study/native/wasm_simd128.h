/* The few vector operations of the guests on SSE. */
#ifndef TONA_NATIVE_SIMD_H
#define TONA_NATIVE_SIMD_H

#include <immintrin.h>

typedef __m128i v128_t;

#define FLOATS(v) _mm_castsi128_ps(v)
#define BITS(v) _mm_castps_si128(v)

#define wasm_i8x16_make(...) _mm_setr_epi8(__VA_ARGS__)
#define wasm_i8x16_add(a, b) _mm_add_epi8(a, b)
#define wasm_i8x16_swizzle(a, lanes) _mm_shuffle_epi8(a, lanes)
#define wasm_i32x4_splat(a) _mm_set1_epi32(a)
#define wasm_f32x4_splat(a) BITS(_mm_set1_ps(a))
#define wasm_f32x4_convert_i32x4(a) BITS(_mm_cvtepi32_ps(a))
#define wasm_f32x4_add(a, b) BITS(_mm_add_ps(FLOATS(a), FLOATS(b)))
#define wasm_f32x4_sub(a, b) BITS(_mm_sub_ps(FLOATS(a), FLOATS(b)))
#define wasm_f32x4_mul(a, b) BITS(_mm_mul_ps(FLOATS(a), FLOATS(b)))
/* b where a < b, else a */
#define wasm_f32x4_pmax(a, b) BITS(_mm_max_ps(FLOATS(b), FLOATS(a)))
#define wasm_f32x4_extract_lane(a, lane) _mm_cvtss_f32(_mm_shuffle_ps(FLOATS(a), FLOATS(a), lane))
#define wasm_v128_load(at) _mm_loadu_si128((const __m128i *)(at))
#define wasm_v128_store(at, a) _mm_storeu_si128((__m128i *)(at), a)

#endif
