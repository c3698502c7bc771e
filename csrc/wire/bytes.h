/* Numbers of 1 to 8 bytes in little endian, for the layouts in wire.c and dispatch.c. */
#ifndef CC_WIRE_BYTES_H
#define CC_WIRE_BYTES_H

#include <stdint.h>

static inline void cc__put(uint8_t *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) at[i] = (uint8_t)(value >> (8 * i));
}

static inline uint64_t cc__get(const uint8_t *at, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)at[i] << (8 * i);
    return value;
}

#endif
