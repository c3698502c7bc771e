/* The table of a relay. */
#include "transport/route.h"

#include "csrc/base/limits.h"

#include <stdlib.h>
#include <string.h>

struct cc__route {
    cc_peer_id peer;
    char address[CC_ADDRESS_MAX];
};

static cc__route *find(const cc__routes *routes, const cc_peer_id *peer) {
    for (uint32_t i = 0; i < routes->count; i++)
        if (memcmp(&routes->entries[i].peer, peer, sizeof *peer) == 0) return &routes->entries[i];
    return NULL;
}

static int grow(cc__routes *routes) {
    uint32_t room = routes->room ? routes->room * 2 : 16;
    cc__route *entries = realloc(routes->entries, room * sizeof *entries);
    if (!entries) return -1;
    routes->entries = entries;
    routes->room = room;
    return 0;
}

cc_status cc__routes_set(cc__routes *routes, const cc_peer_id *peer, const char *address) {
    cc__route *route = find(routes, peer);
    if (!address) {
        if (route) *route = routes->entries[--routes->count];
        return CC_OK;
    }
    if (strlen(address) >= CC_ADDRESS_MAX) return CC_INVALID;
    if (!route) {
        if (routes->count >= CC_LINKS_MAX) return CC_BUSY;
        if (routes->count == routes->room && grow(routes)) return CC_NO_MEMORY;
        route = &routes->entries[routes->count++];
        route->peer = *peer;
    }
    memmove(route->address, address, strlen(address) + 1); /* it may be the one that is there */
    return CC_OK;
}

const char *cc__routes_find(const cc__routes *routes, const cc_peer_id *peer) {
    const cc__route *route = find(routes, peer);
    return route ? route->address : NULL;
}

void cc__routes_free(cc__routes *routes) {
    free(routes->entries);
    *routes = (cc__routes){0};
}
