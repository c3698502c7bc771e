/* What a request asks for: whether it can be right, what must be equal on all members, and where
 * the blocks of its buffers lie. Pure; one table says what each kind needs. */
#ifndef CC_OP_REQUEST_H
#define CC_OP_REQUEST_H

#include "csrc/plan/plan.h"
#include "csrc/wire/wire.h"

#include <stdbool.h>

/* What a kind is. */
#define CC__HAS_DATA 1u     /* buffers, a dtype and a count */
#define CC__HAS_OP 2u       /* a reduction */
#define CC__HAS_ROOT 4u     /* a root */
#define CC__IN_BLOCKS 8u    /* IN holds a block for each rank */
#define CC__OUT_BLOCKS 16u  /* OUT holds a block of each rank */
#define CC__IN_AT_ROOT 32u  /* only the root's input matters */
#define CC__OUT_AT_ROOT 64u /* only the root gets a result */
#define CC__NEEDS_ALL 128u  /* impossible while a rank has no member */
#define CC__PAIRWISE 256u   /* point to point */
#define CC__BLOCKS (CC__IN_BLOCKS | CC__OUT_BLOCKS)

/* CC__* flags; 0: no such kind. */
unsigned cc__kind_traits(cc_kind kind);

/* Why the request is wrong in itself (CC_INVALID), or NULL. */
const char *cc__request_fault(const cc_request *request);
/* Why this build cannot do it (CC_UNSUPPORTED), or NULL. */
const char *cc__request_unsupported(const cc_request *request);

/* Elements of rank r's block; `receive`: of ALL_TO_ALL's output. */
uint64_t cc__request_block(const cc_request *request, uint32_t rank, bool receive);
/* Elements of all blocks, or `count` for kinds without. */
uint64_t cc__request_total(const cc_request *request, bool receive);
/* Bytes of the buffers that this rank has; 0 where a buffer plays no part. */
uint64_t cc__request_in_bytes(const cc_request *request, uint32_t rank);
uint64_t cc__request_out_bytes(const cc_request *request, uint32_t rank);

/* Whether the output lies over the input, as in place does. */
bool cc__request_overlaps(const cc_request *request, uint32_t rank);
/* Whether it does so in the one way that is allowed. */
bool cc__request_in_place(const cc_request *request, uint32_t rank);

/* What must be equal on all members: fields that the operation does not use are left out. */
cc__signature cc__request_signature(const cc_request *request);

/* Where the blocks of the ranks that have a member lie, by member index. */
void cc__request_blocks(const cc_request *request, uint32_t size, const uint32_t *ranks,
                        bool receive, cc__block *out);

#endif
