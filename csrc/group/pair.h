/* Point to point: messages between this peer and one other, outside of epochs and votes.
 * docs/protocol.md section 11.
 *
 * A message has a number of its own among those of its direction and group. Its sender offers it,
 * with the data if that is short, until the receiver says that it was taken; the receiver matches
 * offers with what was posted, by source and tag, in the order in which they were sent. On a new
 * connection everything that was not taken is offered again, and what was taken is not taken twice.
 *
 * All calls are made under the context's lock. Nothing blocks. */
#ifndef CC_PAIR_H
#define CC_PAIR_H

#include "csrc/op/op.h"

typedef struct cc__group cc__group;
typedef struct cc__pair cc__pair;

/* The messages of one group. */
typedef struct cc__pairs {
    cc__pair *first;
    cc__op *receives; /* posted and not matched, in order */
    cc__op *active;   /* long messages that are moving */
    uint64_t arrivals;
    uint32_t n_open; /* sends and receives */
    uint64_t finished;
    int64_t deadline_ns; /* no operation's deadline is earlier */
} cc__pairs;

/* Posts a CC_SEND or CC_RECEIVE that is valid in itself. As cc__group_post. */
cc_status cc__pair_post(cc__group *group, const cc_request *request, int64_t now, cc__op **out,
                        char *message);

/* A member has installed this peer's epoch: it is offered what it may not know of. */
void cc__pair_greet(cc__group *group, uint32_t member);
/* The epoch's members are new: messages with those that are gone fail. */
void cc__pair_renew(cc__group *group);
/* A member said that it closes: messages with it fail. */
void cc__pair_gone(cc__group *group, const cc_peer_id *id);
/* Completes all messages with `why` and forgets them. */
void cc__pair_end(cc__group *group, cc_status why, const char *message);

/* The link to a member came up in a new session: nothing of the old one may be sent in it. */
void cc__pair_connected(cc__group *group, uint32_t member);
/* The link to a member was mended: see csrc/group/mend.h. */
void cc__pair_mended(cc__group *group, uint32_t member);
void cc__pair_resume(cc__group *group, uint32_t member, const cc__frame *frame,
                     const uint8_t *bitmap);
void cc__pair_resumed(cc__group *group, uint32_t member);

bool cc__pair_is_frame(const cc__frame *frame);
void cc__pair_on_frame(cc__group *group, uint32_t member, const cc__frame *frame);
void cc__pair_on_want(cc__group *group, uint32_t member, cc__channel *channel);
void cc__pair_on_payload(cc__group *group, uint32_t member, cc__channel *channel);

/* As cc__group_pump and cc__group_tick. */
bool cc__pair_pump(cc__group *group);
int64_t cc__pair_tick(cc__group *group, int64_t now);

#endif
