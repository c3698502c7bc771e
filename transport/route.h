/* For whom a transport is a relay: peer ids and the addresses at which these are dialled. The same
 * for all transports. A look-up is rare, one for each stream that is to be passed on, so the table
 * is a plain array. */
#ifndef CC_TRANSPORT_ROUTE_H
#define CC_TRANSPORT_ROUTE_H

#include "csrc/collectives.h"

#include <stddef.h>

typedef struct cc__route cc__route;

/* Begins as zeros: nobody. Owns what it points to. */
typedef struct cc__routes {
    cc__route *entries;
    uint32_t count, room;
} cc__routes;

/* As cc_transport_ops.route. Whether the address can be right is the transport's matter, except
 * that CC_INVALID is said of one that is too long. */
cc_status cc__routes_set(cc__routes *routes, const cc_peer_id *peer, const char *address);

/* The address, which is valid until the next call of cc__routes_set; or NULL. */
const char *cc__routes_find(const cc__routes *routes, const cc_peer_id *peer);

void cc__routes_free(cc__routes *routes);

#endif
