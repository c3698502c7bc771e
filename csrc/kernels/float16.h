/* float16 to float32 and back, to nearest even, for each twin: by F16C where the file is compiled for
 * it, else by the bits. Both give the same results, a NaN being canonical already or made so here.
 * Included by reduce_body.h alone. */

#if defined(__F16C__) && defined(__AVX2__)
#include <immintrin.h>
#endif

static inline float float16_widen(uint16_t bits) {
    const uint32_t magnitude = bits & 0x7fffu, sign = (uint32_t)(bits & 0x8000u) << 16;
    /* The exponent's bias differs by 112; a product is right for subnormal numbers too. */
    const float scaled = to_float32(magnitude << 13) * to_float32(UINT32_C(0x77800000));
    const uint32_t special = UINT32_C(0x7f800000) | magnitude << 13; /* infinity, NaN */
    union {
        float value;
        uint32_t bits;
    } both = {scaled};
    return to_float32(sign | (magnitude >= 0x7c00u ? special : both.bits));
}

static inline uint16_t float16_narrow(float value) {
    const uint32_t bits = from_float32(value), magnitude = bits & UINT32_C(0x7fffffff);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    /* Normal: as bfloat16_from_float32, with the exponent's bias taken off. An overflow of the
     * mantissa carries into the exponent, up to infinity. */
    const uint32_t normal =
        (magnitude + 0xfffu + (magnitude >> 13 & 1) - (UINT32_C(112) << 23)) >> 13;
    /* Subnormal: the sum with 1/2 rounds at the right bit, and has the result in its low bits. */
    union {
        float value;
        uint32_t bits;
    } sum = {to_float32(magnitude) + 0.5f};
    const uint32_t subnormal = sum.bits - UINT32_C(0x3f000000);
    uint32_t result = magnitude < UINT32_C(0x38800000) ? subnormal : normal;
    result = magnitude >= UINT32_C(0x47800000) ? 0x7c00u : result;
    result = magnitude > UINT32_C(0x7f800000) ? NAN_FLOAT16 : result;
    return (uint16_t)(sign | result);
}

static inline void float16_to_float32(float *to, const any16 *from, uint64_t count) {
    uint64_t i = 0;
#if defined(__F16C__) && defined(__AVX2__)
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)(from + i))));
#endif
    for (; i < count; i++) to[i] = float16_widen(from[i]);
}

static inline void float16_from_float32(any16 *to, const float *from, uint64_t count) {
    uint64_t i = 0;
#if defined(__F16C__) && defined(__AVX2__)
    const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(NAN_FLOAT32));
    for (; i + 8 <= count; i += 8) {
        __m256 value = _mm256_loadu_ps(from + i);
        value = _mm256_blendv_ps(value, nan, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
        _mm_storeu_si128((__m128i_u *)(to + i), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
    }
#endif
    for (; i < count; i++) to[i] = float16_narrow(from[i]);
}
