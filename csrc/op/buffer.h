/* Inputs kept for an operation in place: a segment is copied just before it is first overwritten,
 * and put back if the operation fails. Not thread-safe: under the context's lock. */
#ifndef CC_BUFFER_H
#define CC_BUFFER_H

#include "csrc/collectives.h"

typedef struct cc__saved {
    uint8_t *buffer; /* the user's, input and output at once; NULL: nothing is to be saved */
    uint64_t bytes;
    uint32_t cell_bytes;
    uint8_t *copy; /* as large as the buffer; pages that are never written cost nothing */
    uint8_t *kept; /* one flag for each cell */
} cc__saved;

cc_status cc__saved_open(cc__saved *saved, void *buffer, uint64_t bytes, uint32_t cell_bytes);
/* Bytes [offset, offset + length) of the buffer are about to be overwritten. */
void cc__saved_keep(cc__saved *saved, uint64_t offset, uint64_t length);
/* Puts every kept byte back. */
void cc__saved_restore(cc__saved *saved);
void cc__saved_close(cc__saved *saved);

#endif
