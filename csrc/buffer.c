#include "csrc/buffer.h"

#include <stdlib.h>
#include <string.h>

cc_status cc__saved_open(cc__saved *saved, void *buffer, uint64_t bytes, uint32_t cell_bytes) {
    uint64_t cells = (bytes + cell_bytes - 1) / cell_bytes;
    *saved = (cc__saved){.buffer = buffer, .bytes = bytes, .cell_bytes = cell_bytes};
    saved->copy = malloc(bytes);
    saved->kept = calloc(cells, 1);
    if (saved->copy && saved->kept) return CC_OK;
    cc__saved_close(saved);
    return CC_NO_MEMORY;
}

static uint64_t cell_length(const cc__saved *saved, uint64_t cell) {
    uint64_t left = saved->bytes - cell * saved->cell_bytes;
    return left < saved->cell_bytes ? left : saved->cell_bytes;
}

void cc__saved_keep(cc__saved *saved, uint64_t offset, uint64_t length) {
    if (saved->buffer == NULL || length == 0) return;
    uint64_t last = (offset + length - 1) / saved->cell_bytes;
    for (uint64_t cell = offset / saved->cell_bytes; cell <= last; cell++) {
        if (saved->kept[cell]) continue;
        uint64_t start = cell * saved->cell_bytes;
        memcpy(saved->copy + start, saved->buffer + start, cell_length(saved, cell));
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
    free(saved->copy);
    free(saved->kept);
    *saved = (cc__saved){0};
}
