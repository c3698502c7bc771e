/* The loops themselves, included once by each twin, which differ in compiler flags alone. So there
 * is one source of truth for the arithmetic, and the compiler's vectoriser does the rest: every
 * loop is written without branches, on integers as wide as the element.
 *
 * Why integers: NaNs become one canonical NaN and -0 counts as less than +0, and both are questions
 * about bits. Only sums and quotients pass through floating point. Loads and stores go through
 * types of alignment 1 that may alias anything, which costs nothing on the machines we know. */

#ifdef __FAST_MATH__
#error "results must be the same bits everywhere: compile the kernels without -ffast-math"
#endif

/* dst may be left or right. That is no dependency between iterations, but the compiler's check for
 * overlap would take it for one and fall back to the scalar loop; this tells it better. */
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define INDEPENDENT
#endif

typedef uint8_t any8;
typedef uint16_t any16 __attribute__((may_alias, aligned(1)));
typedef uint32_t any32 __attribute__((may_alias, aligned(1)));
typedef uint64_t any64 __attribute__((may_alias, aligned(1)));

#define NAN_FLOAT32 UINT32_C(0x7fc00000)
#define NAN_FLOAT64 UINT64_C(0x7ff8000000000000)
#define NAN_BFLOAT16 0x7fc0u
#define NAN_FLOAT16 0x7e00u

static inline float to_float32(uint32_t bits) {
    union {
        uint32_t bits;
        float value;
    } both = {bits};
    return both.value;
}

static inline double to_float64(uint64_t bits) {
    union {
        uint64_t bits;
        double value;
    } both = {bits};
    return both.value;
}

static inline uint32_t from_float32(float value) {
    union {
        float value;
        uint32_t bits;
    } both = {value};
    return value != value ? NAN_FLOAT32 : both.bits;
}

static inline uint64_t from_float64(double value) {
    union {
        double value;
        uint64_t bits;
    } both = {value};
    return value != value ? NAN_FLOAT64 : both.bits;
}

/* To nearest, ties to even: half of the last kept bit is added, less one if that bit is zero. The
 * canonical NaN of float32 becomes that of bfloat16 by itself. */
static inline uint16_t bfloat16_from_float32(float value) {
    uint32_t bits = from_float32(value);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static inline float bfloat16_to_float32(uint16_t bits) {
    return to_float32((uint32_t)bits << 16);
}

/* The order of floating-point numbers, as that of signed integers: negative numbers have their
 * magnitude bits flipped. It ranks -0 just below +0. */
static inline int16_t rank16(uint16_t bits) {
    return (int16_t)(bits ^ ((uint16_t)-(bits >> 15) & 0x7fffu));
}

static inline int32_t rank32(uint32_t bits) {
    return (int32_t)(bits ^ (-(bits >> 31) & UINT32_C(0x7fffffff)));
}

static inline int64_t rank64(uint64_t bits) {
    return (int64_t)(bits ^ (-(bits >> 63) & UINT64_C(0x7fffffffffffffff)));
}

static inline int is_nan_bfloat16(uint16_t bits) {
    return (int16_t)(bits & 0x7fffu) > 0x7f80;
}

static inline int is_nan_float16(uint16_t bits) {
    return (int16_t)(bits & 0x7fffu) > 0x7c00;
}

static inline int is_nan32(uint32_t bits) {
    return (int32_t)(bits & UINT32_C(0x7fffffff)) > INT32_C(0x7f800000);
}

static inline int is_nan64(uint64_t bits) {
    return (int64_t)(bits & UINT64_C(0x7fffffffffffffff)) > INT64_C(0x7ff0000000000000);
}

#define REDUCE_LOOP(name, any, expression)                                                         \
    static void name(void *dst, const void *left, const void *right, uint64_t count) {             \
        any *to = dst;                                                                             \
        const any *from_left = left, *from_right = right;                                          \
        INDEPENDENT                                                                                \
        for (uint64_t i = 0; i < count; i++) {                                                     \
            const any a = from_left[i], b = from_right[i];                                         \
            to[i] = (any)(expression);                                                             \
        }                                                                                          \
    }

/* dst[i] from src[i] and a number. */
#define SCALE_LOOP(name, any, type, expression)                                                    \
    static void name(void *dst, const void *src, uint64_t count, double factor) {                  \
        any *to = dst;                                                                             \
        const any *from = src;                                                                     \
        const type by = (type)factor;                                                              \
        INDEPENDENT                                                                                \
        for (uint64_t i = 0; i < count; i++) {                                                     \
            const any a = from[i];                                                                 \
            to[i] = (expression);                                                                  \
        }                                                                                          \
    }

#define DIVIDE_LOOP(name, any, type, expression)                                                   \
    static void name(void *dst, uint64_t count, uint32_t divisor) {                                \
        any *to = dst;                                                                             \
        const type by = (type)divisor; /* exact: a group has at most CC_MEMBERS_MAX members */     \
        INDEPENDENT                                                                                \
        for (uint64_t i = 0; i < count; i++) {                                                     \
            const any a = to[i];                                                                   \
            to[i] = (expression);                                                                  \
        }                                                                                          \
    }

#define PICK(is_nan, canonical, condition)                                                         \
    (is_nan(a) | is_nan(b) ? (canonical) : (condition) ? a : b)

#include "csrc/kernels/float16.h"

/* ---- floating point of 32 and 64 bits, bfloat16 ------------------------------------------- */

REDUCE_LOOP(sum_float32, any32, from_float32(to_float32(a) + to_float32(b)))
REDUCE_LOOP(prod_float32, any32, from_float32(to_float32(a) * to_float32(b)))
REDUCE_LOOP(min_float32, any32, PICK(is_nan32, NAN_FLOAT32, rank32(a) < rank32(b)))
REDUCE_LOOP(max_float32, any32, PICK(is_nan32, NAN_FLOAT32, rank32(a) > rank32(b)))
DIVIDE_LOOP(divide_float32, any32, float, from_float32(to_float32(a) / by))
SCALE_LOOP(scale_float32, any32, float, from_float32(to_float32(a) * by))

REDUCE_LOOP(sum_float64, any64, from_float64(to_float64(a) + to_float64(b)))
REDUCE_LOOP(prod_float64, any64, from_float64(to_float64(a) * to_float64(b)))
REDUCE_LOOP(min_float64, any64, PICK(is_nan64, NAN_FLOAT64, rank64(a) < rank64(b)))
REDUCE_LOOP(max_float64, any64, PICK(is_nan64, NAN_FLOAT64, rank64(a) > rank64(b)))
DIVIDE_LOOP(divide_float64, any64, double, from_float64(to_float64(a) / by))
SCALE_LOOP(scale_float64, any64, double, from_float64(to_float64(a) * by))

#define AS_BFLOAT16(operator)                                                                      \
    bfloat16_from_float32(bfloat16_to_float32(a) operator bfloat16_to_float32(b))
REDUCE_LOOP(sum_bfloat16, any16, AS_BFLOAT16(+))
REDUCE_LOOP(prod_bfloat16, any16, AS_BFLOAT16(*))
REDUCE_LOOP(min_bfloat16, any16, PICK(is_nan_bfloat16, NAN_BFLOAT16, rank16(a) < rank16(b)))
REDUCE_LOOP(max_bfloat16, any16, PICK(is_nan_bfloat16, NAN_BFLOAT16, rank16(a) > rank16(b)))
DIVIDE_LOOP(divide_bfloat16, any16, float, bfloat16_from_float32(bfloat16_to_float32(a) / by))
SCALE_LOOP(scale_bfloat16, any16, float, bfloat16_from_float32(bfloat16_to_float32(a) * by))

/* ---- float16: converted a block at a time, by instructions where there are some ------------ */

#define BLOCK 64

#define FLOAT16_LOOP(name, expression)                                                             \
    static void name(void *dst, const void *left, const void *right, uint64_t count) {             \
        float x[BLOCK], y[BLOCK];                                                                  \
        for (uint64_t at = 0; at < count; at += BLOCK) {                                           \
            uint64_t length = count - at < BLOCK ? count - at : BLOCK;                             \
            float16_to_float32(x, (const any16 *)left + at, length);                               \
            float16_to_float32(y, (const any16 *)right + at, length);                              \
            for (uint64_t i = 0; i < length; i++) {                                                \
                const float a = x[i], b = y[i];                                                    \
                x[i] = (expression);                                                               \
            }                                                                                      \
            float16_from_float32((any16 *)dst + at, x, length);                                    \
        }                                                                                          \
    }

#define FLOAT16_MAP(name, scalar, expression)                                                      \
    static void name##_blocks(void *dst, const void *src, uint64_t count, scalar factor) {         \
        const float by = (float)factor;                                                            \
        float x[BLOCK];                                                                            \
        for (uint64_t at = 0; at < count; at += BLOCK) {                                           \
            uint64_t length = count - at < BLOCK ? count - at : BLOCK;                             \
            float16_to_float32(x, (const any16 *)src + at, length);                                \
            for (uint64_t i = 0; i < length; i++) x[i] = (expression);                             \
            float16_from_float32((any16 *)dst + at, x, length);                                    \
        }                                                                                          \
    }

FLOAT16_LOOP(sum_float16, a + b)
FLOAT16_LOOP(prod_float16, a *b)
REDUCE_LOOP(min_float16, any16, PICK(is_nan_float16, NAN_FLOAT16, rank16(a) < rank16(b)))
REDUCE_LOOP(max_float16, any16, PICK(is_nan_float16, NAN_FLOAT16, rank16(a) > rank16(b)))
FLOAT16_MAP(divide_float16, uint32_t, x[i] / by)
FLOAT16_MAP(scale_float16, double, x[i] * by)

static void divide_float16(void *dst, uint64_t count, uint32_t divisor) {
    divide_float16_blocks(dst, dst, count, divisor);
}

/* ---- integers and booleans: what wraps around is the same with and without a sign ----------- */

#define INTEGER_LOOPS(bits, any, wide)                                                             \
    REDUCE_LOOP(sum_##bits, any, (wide)a + (wide)b)                                                \
    REDUCE_LOOP(prod_##bits, any, (wide)a *(wide)b)                                                \
    REDUCE_LOOP(band_##bits, any, a &b)                                                            \
    REDUCE_LOOP(bor_##bits, any, a | b)                                                            \
    REDUCE_LOOP(bxor_##bits, any, a ^ b)                                                           \
    REDUCE_LOOP(min_int##bits, any, (int##bits##_t)a < (int##bits##_t)b ? a : b)                   \
    REDUCE_LOOP(max_int##bits, any, (int##bits##_t)a > (int##bits##_t)b ? a : b)                   \
    REDUCE_LOOP(min_uint##bits, any, a < b ? a : b)                                                \
    REDUCE_LOOP(max_uint##bits, any, a > b ? a : b)

INTEGER_LOOPS(8, any8, uint32_t)
INTEGER_LOOPS(16, any16, uint32_t)
INTEGER_LOOPS(32, any32, uint32_t)
INTEGER_LOOPS(64, any64, uint64_t)

REDUCE_LOOP(or_bool, any8, (a | b) != 0)
REDUCE_LOOP(and_bool, any8, (a != 0) & (b != 0))
REDUCE_LOOP(xor_bool, any8, (a != 0) ^ (b != 0))

/* ---- the table ---------------------------------------------------------------------------- */

#define FLOATING(type)                                                                             \
    {                                                                                              \
        [CC_SUM] = sum_##type, [CC_AVG] = sum_##type,   [CC_MIN] = min_##type,                     \
        [CC_MAX] = max_##type, [CC_PROD] = prod_##type, [CC_PREMUL_SUM] = sum_##type,              \
    }
#define INTEGER(sign, bits)                                                                        \
    {                                                                                              \
        [CC_SUM] = sum_##bits,   [CC_MIN] = min_##sign##bits, [CC_MAX] = max_##sign##bits,         \
        [CC_PROD] = prod_##bits, [CC_BAND] = band_##bits,     [CC_BOR] = bor_##bits,               \
        [CC_BXOR] = bxor_##bits,                                                                   \
    }

static const cc__kernels TABLE = {
    .reduce =
        {
            [CC_FLOAT32] = FLOATING(float32),
            [CC_FLOAT64] = FLOATING(float64),
            [CC_FLOAT16] = FLOATING(float16),
            [CC_BFLOAT16] = FLOATING(bfloat16),
            [CC_INT8] = INTEGER(int, 8),
            [CC_INT16] = INTEGER(int, 16),
            [CC_INT32] = INTEGER(int, 32),
            [CC_INT64] = INTEGER(int, 64),
            [CC_UINT8] = INTEGER(uint, 8),
            [CC_UINT16] = INTEGER(uint, 16),
            [CC_UINT32] = INTEGER(uint, 32),
            [CC_UINT64] = INTEGER(uint, 64),
            [CC_BOOL] = {[CC_SUM] = or_bool,
                         [CC_MIN] = and_bool,
                         [CC_MAX] = or_bool,
                         [CC_PROD] = and_bool,
                         [CC_BAND] = and_bool,
                         [CC_BOR] = or_bool,
                         [CC_BXOR] = xor_bool},
        },
    .divide = {[CC_FLOAT32] = divide_float32,
               [CC_FLOAT64] = divide_float64,
               [CC_FLOAT16] = divide_float16,
               [CC_BFLOAT16] = divide_bfloat16},
    .scale = {[CC_FLOAT32] = scale_float32,
              [CC_FLOAT64] = scale_float64,
              [CC_FLOAT16] = scale_float16_blocks,
              [CC_BFLOAT16] = scale_bfloat16},
};
