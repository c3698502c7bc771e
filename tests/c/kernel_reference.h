/* Elements as bits, random ones, and what each kernel must make of them, by other ways than the
 * kernels': for test_kernels.c. */
#ifndef CC_TESTS_KERNEL_REFERENCE_H
#define CC_TESTS_KERNEL_REFERENCE_H

#include "csrc/kernels/kernels.h"
#include "tests/c/check.h"

#include <math.h>
#include <string.h>

static uint64_t seed = 20240229;

static uint64_t random_bits(void) { /* xorshift64* */
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return seed * UINT64_C(0x2545f4914f6cdd1d);
}

/* ---- elements as bits ------------------------------------------------------------------------ */

static const cc_dtype DTYPES[] = {CC_FLOAT32, CC_FLOAT64, CC_INT32, CC_INT64, CC_BFLOAT16,
                                  CC_FLOAT16, CC_INT8,    CC_INT16, CC_UINT8, CC_UINT16,
                                  CC_UINT32,  CC_UINT64,  CC_BOOL};
#define N_DTYPES (sizeof DTYPES / sizeof *DTYPES)

static int is_half(cc_dtype dtype) {
    return dtype == CC_BFLOAT16 || dtype == CC_FLOAT16;
}

static int is_float(cc_dtype dtype) {
    return dtype == CC_FLOAT32 || dtype == CC_FLOAT64 || is_half(dtype);
}

static int is_signed(cc_dtype dtype) {
    return dtype == CC_INT8 || dtype == CC_INT16 || dtype == CC_INT32 || dtype == CC_INT64;
}

static int exponent_shift(cc_dtype dtype) {
    return dtype == CC_FLOAT32 ? 23 : dtype == CC_FLOAT64 ? 52 : dtype == CC_FLOAT16 ? 10 : 7;
}

static uint64_t exponent_mask(cc_dtype dtype) {
    return dtype == CC_FLOAT64 ? 0x7ff : dtype == CC_FLOAT16 ? 0x1f : 0xff;
}

static uint64_t load(const void *from, uint64_t index, cc_dtype dtype) {
    size_t bytes = cc_dtype_bytes(dtype);
    uint64_t bits = 0;
    memcpy(&bits, (const char *)from + index * bytes, bytes); /* little endian */
    return bits;
}

static void store(void *to, uint64_t index, cc_dtype dtype, uint64_t bits) {
    size_t bytes = cc_dtype_bytes(dtype);
    memcpy((char *)to + index * bytes, &bits, bytes);
}

/* An element to be combined with `other`: often special, often of about the same magnitude. */
static uint64_t random_element(cc_dtype dtype, uint64_t other) {
    int bits = 8 * (int)cc_dtype_bytes(dtype);
    uint64_t any = random_bits(), width = UINT64_MAX >> (64 - bits);
    if (!is_float(dtype)) {
        return random_bits() % 4 ? any & width : ((random_bits() % 5) - 2 + (width >> 1)) & width;
    }
    int shift = exponent_shift(dtype);
    uint64_t fraction = (UINT64_C(1) << shift) - 1, exponent = exponent_mask(dtype) << shift;
    uint64_t sign = any & (UINT64_C(1) << (bits - 1));
    switch (random_bits() % 12) {
    case 0: return sign;
    case 1: return sign | exponent;
    case 2: return sign | exponent | ((any & fraction) | 1);
    case 3: return sign | (any & fraction);
    case 4: return sign | ((exponent - 1) & (exponent | fraction)); /* the largest finite */
    case 5: return sign | (any & 1 ? fraction : 1);                 /* the ends of the subnormals */
    case 6: return other ^ (UINT64_C(1) << (bits - 1));
    case 7:
    case 8:
    case 9: return sign | (other & exponent) | (any & fraction);
    case 10: return sign | (((other & exponent) >> 1) & exponent) | (any & fraction);
    default: return any & width;
    }
}

static double value_of_float16(uint64_t bits) {
    int exponent = (int)(bits >> 10 & 0x1f), fraction = (int)(bits & 0x3ff);
    double value = exponent == 0   ? ldexp(fraction, -24)
                   : exponent < 31 ? ldexp(1024 + fraction, exponent - 25)
                   : fraction == 0 ? INFINITY
                                   : NAN;
    return bits & 0x8000 ? -value : value;
}

static double value_of(uint64_t bits, cc_dtype dtype) {
    double wide;
    float narrow;
    uint32_t low = (uint32_t)(dtype == CC_BFLOAT16 ? bits << 16 : bits);
    if (dtype == CC_FLOAT16) {
        return value_of_float16(bits);
    }
    memcpy(&wide, &bits, 8);
    memcpy(&narrow, &low, 4);
    return dtype == CC_FLOAT64 ? wide : (double)narrow;
}

/* ---- the reference --------------------------------------------------------------------------- */

/* The 16-bit number nearest to a float32: of the two around it, the nearer, else the even one. */
static uint64_t nearest_half(float value, cc_dtype dtype) {
    uint64_t infinite = exponent_mask(dtype) << exponent_shift(dtype), below = 0;
    uint64_t sign = signbit(value) ? 0x8000 : 0;
    double exact = fabs((double)value);
    if (isinf(value)) {
        return sign | infinite;
    }
    for (uint64_t step = 0x4000; step > 0; step /= 2) { /* the largest that is not above */
        if (below + step < infinite && value_of(below + step, dtype) <= exact) {
            below += step;
        }
    }
    double low = value_of(below, dtype), high = value_of(below + 1, dtype);
    high = isinf(high) ? (dtype == CC_FLOAT16 ? 0x1p16 : 0x1p128) : high;
    if (exact - low != high - exact) {
        return sign | (exact - low < high - exact ? below : below + 1);
    }
    return sign | (below + (below & 1));
}

static uint64_t canonical_nan(cc_dtype dtype) {
    return (2 * exponent_mask(dtype) + 1) << (exponent_shift(dtype) - 1);
}

static uint64_t bits_of(double value, cc_dtype dtype) { /* rounds */
    if (isnan(value)) {
        return canonical_nan(dtype);
    }
    uint64_t bits = 0;
    float narrow = (float)value;
    if (is_half(dtype)) {
        return nearest_half(narrow, dtype);
    }
    memcpy(&bits, dtype == CC_FLOAT64 ? (void *)&value : (void *)&narrow, cc_dtype_bytes(dtype));
    return bits;
}

static uint64_t expected_integer(uint64_t a, uint64_t b, cc_dtype dtype, cc_op op) {
    int shift = 64 - 8 * (int)cc_dtype_bytes(dtype);
    int a_less = is_signed(dtype) ? (int64_t)(a << shift) < (int64_t)(b << shift) : a < b;
    switch (op) {
    case CC_SUM: return (a + b) & UINT64_MAX >> shift;
    case CC_PROD: return (a * b) & UINT64_MAX >> shift;
    case CC_BAND: return a & b;
    case CC_BOR: return a | b;
    case CC_BXOR: return a ^ b;
    default: return (op == CC_MIN) == a_less ? a : b;
    }
}

static uint64_t expected_bool(int a, int b, cc_op op) {
    switch (op) {
    case CC_SUM:
    case CC_MAX:
    case CC_BOR: return a || b;
    case CC_BXOR: return a != b;
    default: return a && b;
    }
}

static uint64_t expected(uint64_t a, uint64_t b, cc_dtype dtype, cc_op op) {
    if (dtype == CC_BOOL) {
        return expected_bool(a != 0, b != 0, op);
    }
    if (!is_float(dtype)) {
        return expected_integer(a, b, dtype, op);
    }
    volatile double x = value_of(a, dtype), y = value_of(b, dtype);
    if (op == CC_SUM || op == CC_AVG || op == CC_PREMUL_SUM) {
        return bits_of(x + y, dtype);
    }
    if (op == CC_PROD) {
        return bits_of(x * y, dtype);
    }
    if (isnan(x) || isnan(y)) {
        return canonical_nan(dtype);
    }
    int a_less = x < y || (x == y && signbit(x) && !signbit(y));
    return (op == CC_MIN) == a_less ? a : b;
}

#endif
