#include "csrc/op/buffer.h"

#include "csrc/base/pool.h"

#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

cc_status cc__saved_open(cc__saved *saved, void *buffer, uint64_t bytes, uint32_t cell_bytes) {
    uint64_t cells = (bytes + cell_bytes - 1) / cell_bytes;
    *saved = (cc__saved){.buffer = buffer, .bytes = bytes, .cell_bytes = cell_bytes};
    saved->copy = cc__pool_take(bytes);
    saved->kept = calloc(cells, 1);
    if (saved->copy && saved->kept) return CC_OK;
    cc__saved_close(saved);
    return CC_NO_MEMORY;
}

static uint64_t cell_length(const cc__saved *saved, uint64_t cell) {
    uint64_t left = saved->bytes - cell * saved->cell_bytes;
    return left < saved->cell_bytes ? left : saved->cell_bytes;
}

/* As memcpy, past the caches: what is saved is read again only after a failure. */
static void copy_away(uint8_t *to, const uint8_t *from, size_t bytes) {
    size_t at = 0;
#ifdef __SSE2__
    for (; at + 64 <= bytes; at += 64) { /* `to` is a cell's start, and cells are aligned */
        for (size_t i = 0; i < 64; i += 16)
            _mm_stream_si128((__m128i *)(void *)(to + at + i),
                             _mm_loadu_si128((const __m128i *)(const void *)(from + at + i)));
    }
    _mm_sfence();
#endif
    memcpy(to + at, from + at, bytes - at);
}

void cc__saved_keep(cc__saved *saved, uint64_t offset, uint64_t length) {
    if (saved->buffer == NULL || length == 0) return;
    uint64_t last = (offset + length - 1) / saved->cell_bytes;
    for (uint64_t cell = offset / saved->cell_bytes; cell <= last; cell++) {
        if (saved->kept[cell]) continue;
        uint64_t start = cell * saved->cell_bytes;
        copy_away(saved->copy + start, saved->buffer + start, cell_length(saved, cell));
        saved->kept[cell] = 1;
    }
}

void cc__saved_restore(cc__saved *saved) {
    if (saved->buffer == NULL) return;
    for (uint64_t cell = 0; cell * saved->cell_bytes < saved->bytes; cell++) {
        if (!saved->kept[cell]) continue;
        uint64_t start = cell * saved->cell_bytes;
        memcpy(saved->buffer + start, saved->copy + start, cell_length(saved, cell));
    }
}

void cc__saved_close(cc__saved *saved) {
    cc__pool_give(saved->copy);
    free(saved->kept);
    *saved = (cc__saved){0};
}
