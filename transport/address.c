/* Addresses as text and as the system has them, and which of them are this host's. Only numeric ones:
 * a name server is one more thing that fails, and asking it blocks. */
#include "transport/socket.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint16_t cc__address_port(const cc__address *address) {
    return ntohs(address->any.sa_family == AF_INET6 ? address->six.sin6_port
                                                    : address->four.sin_port);
}

void cc__address_set_port(cc__address *address, uint16_t port) {
    if (address->any.sa_family == AF_INET6)
        address->six.sin6_port = htons(port);
    else
        address->four.sin_port = htons(port);
}

int cc__address_is_loopback(const cc__address *address) {
    if (address->any.sa_family == AF_INET) return ntohl(address->four.sin_addr.s_addr) >> 24 == 127;
    return IN6_IS_ADDR_LOOPBACK(&address->six.sin6_addr);
}

int cc__address_is_wildcard(const cc__address *address) {
    if (address->any.sa_family == AF_INET) return address->four.sin_addr.s_addr == INADDR_ANY;
    return IN6_IS_ADDR_UNSPECIFIED(&address->six.sin6_addr);
}

int cc__address_same_host(const cc__address *a, const cc__address *b) {
    if (a->any.sa_family != b->any.sa_family) return 0;
    if (a->any.sa_family == AF_INET) return a->four.sin_addr.s_addr == b->four.sin_addr.s_addr;
    return memcmp(&a->six.sin6_addr, &b->six.sin6_addr, 16) == 0;
}

cc_status cc__address_parse_host(const char *host, cc__address *out) {
    char copy[CC_ADDRESS_MAX];
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, host, &out->four.sin_addr) == 1) {
        out->any.sa_family = AF_INET;
        out->bytes = sizeof out->four;
        return CC_OK;
    }
    if (strlen(host) >= sizeof copy) return CC_INVALID;
    memcpy(copy, host, strlen(host) + 1);
    memset(out, 0, sizeof *out);
    char *scope = strchr(copy, '%');
    if (scope) {
        *scope++ = 0;
        out->six.sin6_scope_id = if_nametoindex(scope);
        if (out->six.sin6_scope_id == 0)
            out->six.sin6_scope_id = (uint32_t)strtoul(scope, NULL, 10);
        if (out->six.sin6_scope_id == 0) return CC_INVALID;
    }
    if (inet_pton(AF_INET6, copy, &out->six.sin6_addr) != 1) return CC_INVALID;
    out->any.sa_family = AF_INET6;
    out->bytes = sizeof out->six;
    return CC_OK;
}

cc_status cc__address_parse(const char *text, cc__address *out) {
    char host[CC_ADDRESS_MAX];
    const char *colon = text ? strrchr(text, ':') : NULL;
    if (!colon || colon == text || strlen(text) >= sizeof host) return CC_INVALID;
    unsigned port = 0;
    const char *digit = colon + 1;
    if (!*digit) return CC_INVALID;
    for (; *digit; digit++) {
        if (*digit < '0' || *digit > '9' || digit - colon > 5) return CC_INVALID;
        port = port * 10 + (unsigned)(*digit - '0');
    }
    if (port > 65535) return CC_INVALID;
    size_t length = (size_t)(colon - text);
    int brackets = text[0] == '[';
    if (brackets != (text[length - 1] == ']') || (brackets && length < 3)) return CC_INVALID;
    length -= brackets ? 2 : 0;
    memcpy(host, text + brackets, length);
    host[length] = 0;
    if (!brackets && strchr(host, ':')) return CC_INVALID; /* "::1:80" could be read in two ways */
    if (cc__address_parse_host(host, out) != CC_OK) return CC_INVALID;
    if (brackets != (out->any.sa_family == AF_INET6)) return CC_INVALID;
    cc__address_set_port(out, (uint16_t)port);
    return CC_OK;
}

void cc__address_text(const cc__address *address, char *out) {
    char host[INET6_ADDRSTRLEN] = "?", scope[IF_NAMESIZE + 1] = "";
    unsigned port = cc__address_port(address);
    if (address->any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &address->four.sin_addr, host, sizeof host);
        snprintf(out, CC_ADDRESS_MAX, "%s:%u", host, port);
        return;
    }
    inet_ntop(AF_INET6, &address->six.sin6_addr, host, sizeof host);
    if (address->six.sin6_scope_id) {
        scope[0] = '%';
        if (!if_indextoname(address->six.sin6_scope_id, scope + 1))
            snprintf(scope + 1, IF_NAMESIZE, "%u", address->six.sin6_scope_id);
    }
    /* 64 bytes hold what there is; the compiler wants to know what becomes of more. */
    if (snprintf(out, CC_ADDRESS_MAX, "[%s%s]:%u", host, scope, port) >= CC_ADDRESS_MAX) out[0] = 0;
}

static int take_interface_address(const struct ifaddrs *one, cc__address *out) {
    memset(out, 0, sizeof *out);
    if (!one->ifa_addr || !(one->ifa_flags & IFF_UP)) return 0;
    if (one->ifa_addr->sa_family == AF_INET)
        out->bytes = sizeof out->four;
    else if (one->ifa_addr->sa_family == AF_INET6)
        out->bytes = sizeof out->six;
    else
        return 0;
    memcpy(&out->any, one->ifa_addr, out->bytes);
    return 1;
}

int cc__address_is_local(const cc__address *address) {
    struct ifaddrs *all;
    cc__address own;
    int found = cc__address_is_loopback(address);
    if (found || getifaddrs(&all)) return found;
    for (struct ifaddrs *one = all; one && !found; one = one->ifa_next)
        found = take_interface_address(one, &own) && cc__address_same_host(&own, address);
    freeifaddrs(all);
    return found;
}

int cc__address_of_interface(const char *interface, int family, cc__address *out) {
    struct ifaddrs *all;
    cc__address own;
    int found = 0; /* 1: an address that works only with its scope, 2: any other */
    if (getifaddrs(&all)) return 0;
    for (struct ifaddrs *one = all; one; one = one->ifa_next) {
        if (!take_interface_address(one, &own) || own.any.sa_family != family) continue;
        if (interface ? strcmp(interface, one->ifa_name) != 0 : cc__address_is_loopback(&own))
            continue;
        int worth = family == AF_INET6 && own.six.sin6_scope_id ? 1 : 2;
        if (worth > found) {
            found = worth;
            *out = own;
        }
    }
    freeifaddrs(all);
    return found;
}
