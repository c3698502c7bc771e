/* Inputs that are not used where they lie: several arrays packed into one (cc_post_many), or an
 * input multiplied by its factor (CC_PREMUL_SUM). The copy is made by the caller's thread, without
 * the context's lock; results are unpacked by whoever drives, a step at a time, before the vote. */
#ifndef CC_OP_PACK_H
#define CC_OP_PACK_H

#include "csrc/collectives.h"

#include <stdbool.h>

typedef struct cc__pack {
    uint8_t *in, *out; /* in: the copy; out: room for the result, of several parts only */
    cc_part *parts;
    uint32_t n_parts, next; /* the part that is unpacked next, */
    uint64_t next_offset;   /* and from which byte on */
    uint64_t offset;        /* of that byte in `out` */
    uint32_t element_bytes;
    bool over_input; /* the request's own output lies over the input that was copied */
} cc__pack;

/* What is wrong with the parts of a cc_post_many, or NULL. */
const char *cc__parts_fault(const cc_request *request, const cc_part *parts, uint32_t n_parts);

/* Makes the copy and points the request to it. `parts` may be NULL: then the request's own input is
 * scaled. CC_NO_MEMORY: nothing is left to be closed. */
cc_status cc__pack_open(cc__pack *pack, cc_request *request, const cc_part *parts,
                        uint32_t n_parts);
/* Unpacks about *budget bytes and takes them off; returns whether all is unpacked. */
bool cc__pack_deliver(cc__pack *pack, uint64_t *budget);
/* Puts back the inputs of parts in place that were overwritten. */
void cc__pack_restore(const cc__pack *pack);
/* Nothing is unpacked yet. */
void cc__pack_rewind(cc__pack *pack);
void cc__pack_close(cc__pack *pack);

#endif
