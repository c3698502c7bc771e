/* A plan: what one member sends, receives and reduces in one operation. Pure: a function of the
 * algorithm, the group's size, the member's index and the length; it knows no links and no memory.
 *
 * A move is one message of a directed pair, or local work. Long moves are carried out in segments,
 * in any order of arrival; `after` orders them segment by segment: bytes [a, b) of a move may start
 * once the move it names has completed all of its bytes below b. (Both then have equal lengths.)
 * CC__MOVE_FENCE: it may start only when all earlier moves of the plan are complete.
 * A move of zero bytes is left out of the plan; one that names it as `after` names none instead.
 *
 * Areas: IN and OUT are the caller's buffers (the same memory when in place), STAGE is scratch.
 * A plan must be right in place too: no byte of IN that is still to be read, by a send or as an
 * operand, may be overwritten before. Where only the arrival of data that depends on the earlier
 * read can trigger the overwrite, no fence is needed (ring); else there must be one. In place means
 * OUT == IN (ALL_REDUCE, REDUCE, BROADCAST), or that the smaller of the two buffers is this member's
 * own block of the larger (the kinds with blocks; ALL_TO_ALL is never in place).
 *
 * OUT does not exist at a member that gets no result (REDUCE, GATHER: all but the root), IN does not
 * at one that gives none (BROADCAST, SCATTER: all but the root). A plan never touches them there.
 */
#ifndef CC_PLAN_H
#define CC_PLAN_H

#include "csrc/collectives.h"

typedef enum cc__move_kind {
    CC__SEND = 1, /* src -> peer */
    CC__PLACE,    /* from peer -> dst, as it is */
    CC__REDUCE,   /* from peer, combined with the local operand src -> dst */
    CC__COPY,     /* local: src -> dst */
    CC__LOCAL,    /* local: src, src2 combined -> dst */
} cc__move_kind;

typedef enum cc__area { CC__IN = 0, CC__OUT, CC__STAGE } cc__area;

#define CC__MOVE_FENCE 1u          /* waits for all earlier moves */
#define CC__MOVE_INCOMING_FIRST 2u /* REDUCE: the received operand is the left one */
#define CC__MOVE_FINISH 4u         /* the result is final: avg divides here */

typedef struct cc__place {
    cc__area area;
    uint64_t offset; /* bytes */
} cc__place;

typedef struct cc__move {
    cc__move_kind kind;
    uint32_t flags;
    uint32_t peer; /* index in the epoch's member list; network moves only */
    uint32_t slot; /* numbers the messages from one peer to another: 0, 1, ... */
    int32_t after; /* index of an earlier move, or -1 */
    uint64_t bytes;
    cc__place src;  /* SEND, COPY: what; REDUCE, LOCAL: the local operand */
    cc__place src2; /* LOCAL: the right operand (src is the left one) */
    cc__place dst;
    cc__place hold; /* REDUCE, PLACE with `after` or a fence: `bytes` of STAGE for payload that
                         arrives before it may be used. Unused otherwise. */
} cc__move;

typedef struct cc__plan {
    cc_algorithm algorithm;
    uint32_t n_moves, capacity;
    cc__move *moves;
    uint64_t stage_bytes;
    int eager; /* nonzero: every directed pair has at most one message, of CC_EAGER_BYTES at most:
                  data may be sent before the receiver is known to be ready */
} cc__plan;

/* Where a member's block lies in the larger buffer of a kind that has blocks. */
typedef struct cc__block {
    uint64_t offset, bytes;
} cc__block;

typedef struct cc__plan_input {
    cc_kind kind;
    cc_algorithm algorithm; /* not CC_AUTO */
    uint32_t size, me;      /* members of the epoch, and this one's index in it */
    uint32_t root;          /* index; kinds that have one */
    uint64_t count;         /* elements, of kinds without blocks */
    uint32_t element_bytes;
    const cc__block *blocks;     /* by member index, size entries: ALL_GATHER, GATHER: of OUT;
                                    SCATTER, REDUCE_SCATTER, ALL_TO_ALL: of IN. They do not overlap;
                                    some may be empty, and there may be gaps (ranks without member) */
    const cc__block *out_blocks; /* ALL_TO_ALL: of OUT */
    int uneven; /* ALL_TO_ALL: members know their own blocks alone, so eager is not allowed */
} cc__plan_input;

/* The algorithm that CC_AUTO stands for: a pure function of what all members know alike. `bytes`
 * are those of the larger buffer (of all blocks, for kinds that have them); 0 for an uneven
 * ALL_TO_ALL. The choice can always do `kind`. */
cc_algorithm cc__plan_choose(const cc_network *network, cc_kind kind, uint32_t size,
                             uint64_t bytes);

/* Whether `algorithm` can do `kind`. */
int cc__plan_supports(cc_kind kind, cc_algorithm algorithm);

/* Fills an empty plan (all zero). CC_UNSUPPORTED, CC_NO_MEMORY: the plan is still empty. */
cc_status cc__plan_build(const cc__plan_input *input, cc__plan *plan);
void cc__plan_free(cc__plan *plan);

/* For the builders: appends a move and returns its index, or -1 if it has no bytes (or there is no
 * memory: cc__plan_build notices that by itself). */
int32_t cc__plan_add(cc__plan *plan, cc__move move);

#endif
