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
#define wasm_i8x16_shuffle(a, b, ...) \
    ((v128_t)__builtin_shufflevector((__v16qi)(a), (__v16qi)(b), __VA_ARGS__))
#define wasm_i32x4_splat(a) _mm_set1_epi32(a)
#define wasm_f32x4_splat(a) BITS(_mm_set1_ps(a))
#define wasm_f32x4_convert_i32x4(a) BITS(_mm_cvtepi32_ps(a))
#define wasm_f32x4_add(a, b) BITS(_mm_add_ps(FLOATS(a), FLOATS(b)))
#define wasm_f32x4_sub(a, b) BITS(_mm_sub_ps(FLOATS(a), FLOATS(b)))
#define wasm_f32x4_mul(a, b) BITS(_mm_mul_ps(FLOATS(a), FLOATS(b)))
#define wasm_f32x4_div(a, b) BITS(_mm_div_ps(FLOATS(a), FLOATS(b)))
#define wasm_f32x4_sqrt(a) BITS(_mm_sqrt_ps(FLOATS(a)))
#define wasm_f32x4_gt(a, b) BITS(_mm_cmpgt_ps(FLOATS(a), FLOATS(b)))
#define wasm_f32x4_ge(a, b) BITS(_mm_cmpge_ps(FLOATS(a), FLOATS(b)))
#define wasm_f32x4_le(a, b) BITS(_mm_cmple_ps(FLOATS(a), FLOATS(b)))
/* b where a < b, else a */
#define wasm_f32x4_pmax(a, b) BITS(_mm_max_ps(FLOATS(b), FLOATS(a)))
#define wasm_f32x4_extract_lane(a, lane) _mm_cvtss_f32(_mm_shuffle_ps(FLOATS(a), FLOATS(a), lane))
/* without a limit: what is beyond it is not looked at */
#define wasm_i32x4_trunc_sat_f32x4(a) _mm_cvttps_epi32(FLOATS(a))
#define wasm_i32x4_make(...) _mm_setr_epi32(__VA_ARGS__)
#define wasm_i32x4_add(a, b) _mm_add_epi32(a, b)
#define wasm_i32x4_mul(a, b) _mm_mullo_epi32(a, b)
#define wasm_i32x4_min(a, b) _mm_min_epi32(a, b)
#define wasm_i32x4_dot_i16x8(a, b) _mm_madd_epi16(a, b)
#define wasm_u32x4_shr(a, count) _mm_srli_epi32(a, count)
#define wasm_i16x8_narrow_i32x4(a, b) _mm_packs_epi32(a, b)
#define wasm_u8x16_narrow_i16x8(a, b) _mm_packus_epi16(a, b)
#define wasm_i32x4_extract_lane(a, lane) _mm_extract_epi32(a, lane)
#define wasm_v128_and(a, b) _mm_and_si128(a, b)
#define wasm_v128_bitselect(a, b, mask) _mm_blendv_epi8(b, a, mask)
#define wasm_v128_load64_zero(at) _mm_loadl_epi64((const __m128i *)(at))
#define wasm_v128_load(at) _mm_loadu_si128((const __m128i *)(at))
#define wasm_v128_store(at, a) _mm_storeu_si128((__m128i *)(at), a)

#endif
