/* Every bound of the core, in one place. Memory is allocated from these and from what the local
 * caller asked for, never from a number that came off the wire. */
#ifndef CC_BASE_LIMITS_H
#define CC_BASE_LIMITS_H

#define CC_MEMBERS_MAX 1024u      /* of one group */
#define CC_GROUPS_MAX 64u         /* of one context */
#define CC_CLOSED_GROUPS_MAX 256u /* closed ones that a context remembers */
#define CC_LANES_MAX 16u          /* of one group */
#define CC_REASONS_MAX 16         /* records whose failures a lane remembers for late posts */
#define CC_INFLIGHT_MAX 64u       /* operations open at once in one lane */
#define CC_STREAMS_MAX 16u        /* bulk connections of one link */
#define CC_SEGMENT_MIN 64u        /* payload bytes of one bulk frame */
#define CC_SEGMENT_MAX (1u << 20)
#define CC_PARTS_MIN 2u               /* of a long message, at least, */
#define CC_PART_BYTES_MIN (64u << 10) /* unless they would be shorter than this */
#define CC_EAGER_BYTES 16384u         /* payload of one eager frame */
#define CC_EAGER_SLOTS 8u             /* operations a peer may be ahead with eager data, per lane */
#define CC_CONTROL_QUEUE_BYTES (4u << 20) /* unconfirmed on one stream 0 before the link breaks */
#define CC_CONFIRM_BYTES (64u << 10)      /* received on it before they are confirmed */
#define CC_HALF_OPEN_MAX 256u             /* connections whose handshake is not over */
#define CC_RELAYS_MAX 64u                 /* streams of other peers that one passes on, each with */
#define CC_RELAY_BYTES 65536u             /* at most so much in hand, in either direction */
#define CC_PAIR_WINDOW 256u               /* messages to one peer that it has not taken */
#define CC_PAIR_INLINE_MAX 8u             /* of these, sent along with their offer */
#define CC_MESSAGES_MAX 1024u             /* sends and receives open at once in one group */
#define CC_NOTICES_MAX 128u /* operations of one lane that a peer can be told of in advance */
#define CC_LINKS_MAX 2048u  /* of one context */
#define CC_TRACE_EVENTS_MAX (1u << 20) /* that the flight recorder keeps; 64 bytes each */

#endif
