/* Between pair.c (the messages there are, and how they end), pair_post.c (how they begin) and
 * pair_frames.c (what the other peer says). */
#ifndef CC_PAIR_INTERNAL_H
#define CC_PAIR_INTERNAL_H

#include "csrc/group/group.h"

/* A message of this peer that the other one has not taken yet. */
typedef struct cc__outgoing {
    uint64_t sequence; /* 0: none */
    cc__op *op;        /* NULL: given up; kept until the other peer knows it */
    bool offered;      /* in the present session */
    bool is_inline;    /* the offer had the data with it */
} cc__outgoing;

/* A message of the other peer that was offered and not taken yet. */
typedef struct cc__incoming {
    uint64_t sequence, arrival; /* arrival: its place among the offers of all peers */
    cc__signature signature;
    uint8_t *payload; /* of a short one */
    uint32_t bytes;   /* of it */
    bool is_complete; /* all of the offer is here */
    bool is_whole;    /* the offer is all there is to the message */
    bool is_offered;  /* in the present session: a long message may be accepted */
    cc__op *op;       /* the receive that a long message goes to */
} cc__incoming;

/* How the last message in a slot ended here. */
typedef struct cc__settled {
    uint64_t sequence;
    cc_status status;
} cc__settled;

struct cc__pair {
    cc_peer_id id;
    uint32_t rank;
    cc__link *link;
    uint64_t session;                  /* of the link, in which the offers were made */
    bool greeted;                      /* in this epoch */
    uint64_t sent;                     /* the last message's number */
    uint32_t n_in, n_inline, n_stored; /* offers of theirs; with data: of ours, of theirs */
    cc__outgoing out[CC_PAIR_WINDOW];  /* by sequence, as the others */
    cc__incoming *in[CC_PAIR_WINDOW];
    cc__settled settled[CC_PAIR_WINDOW];
    cc__pair *next;
};

/* Notices a new session. NULL: none, or with `make` no memory. */
cc__pair *cc__pair_get(cc__group *group, uint32_t member, bool make);
cc__outgoing *cc__pair_outgoing(cc__pair *pair, uint64_t sequence); /* NULL: none */
cc__incoming *cc__pair_incoming(const cc__pair *pair, uint64_t sequence);

/* Completes an operation that is in no list and in no slot any more. */
void cc__pair_complete(cc__group *group, cc__op *op, cc_status status, const char *message);
/* Tells the sender how its message ended here, and forgets it. */
void cc__pair_settle(cc__group *group, cc__pair *pair, cc__incoming *incoming, cc_status status);
/* Gives a complete or offered message to a receive that is in no list any more. */
void cc__pair_take(cc__group *group, cc__pair *pair, cc__incoming *incoming, cc__op *op);
bool cc__pair_matches(const cc__pair *pair, const cc__incoming *incoming, const cc__op *op);
void cc__pair_send(cc__group *group, cc__pair *pair, cc__frame_type type, uint64_t sequence,
                   uint64_t status);
/* A receive whose message was given up: it takes another one, or waits before all others. */
void cc__pair_receive_again(cc__group *group, cc__op *op);
/* Offers a message, if the connection is there; else that is done when it is. */
void cc__pair_offer(cc__group *group, cc__pair *pair, cc__outgoing *outgoing);
/* The first offer, in the order of arrival, that a receive may take; NULL: none. */
cc__incoming *cc__pair_first_match(const cc__group *group, const cc__op *op, cc__pair **found);
/* Whether all other members are gone. */
bool cc__pair_nobody_left(const cc__group *group);
/* Lets a long message move: it was accepted. */
cc_status cc__pair_move(cc__group *group, cc__op *op);

#endif
