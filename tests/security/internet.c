/* A small Internet for the program under attack: names, and public addresses behind which the test's own servers stand. Loaded before the
 * C library; read anew at each call, as a name server is asked anew. $TEST_INTERNET names a file of such lines:
 *
 *     name HOST ADDRESS ADDRESS …      what the name means; no address: nothing
 *     route ADDRESS PORT PORT          who calls there arrives at that port of 127.0.0.1
 *
 * Names under .example that it does not know are unknown; of anything else it knows nothing. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static FILE *open_map(void)
{
    const char *path = getenv("TEST_INTERNET");
    return path ? fopen(path, "re") : NULL;
}

static int ends_in_example(const char *name)
{
    size_t n = strlen(name), end = strlen(".example");
    return n > end && !strcasecmp(name + n - end, ".example");
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result)
{
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    FILE *map = node ? open_map() : NULL;
    if (!map || !ends_in_example(node)) {
        if (map)
            fclose(map);
        return real(node, service, hints, result);
    }
    struct addrinfo numeric = hints ? *hints : (struct addrinfo){0};
    struct addrinfo *found = NULL, **last = &found;
    char line[1024];
    numeric.ai_flags |= AI_NUMERICHOST;
    while (fgets(line, sizeof line, map)) {
        char *rest, *word = strtok_r(line, " \n", &rest);
        if (!word || strcmp(word, "name"))
            continue;
        word = strtok_r(NULL, " \n", &rest);
        if (!word || strcasecmp(word, node))
            continue;
        while ((word = strtok_r(NULL, " \n", &rest)))
            if (!real(word, service, &numeric, last))
                while (*last)
                    last = &(*last)->ai_next;
    }
    fclose(map);
    *result = found;
    return found ? 0 : EAI_NONAME;
}

int connect(int socket, const struct sockaddr *to, socklen_t size)
{
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    struct sockaddr_in at;
    FILE *map = to->sa_family == AF_INET && size >= sizeof at ? open_map() : NULL;
    if (!map)
        return real(socket, to, size);
    char line[1024], wanted[INET_ADDRSTRLEN], address[64];
    unsigned port, arrival;
    memcpy(&at, to, sizeof at);
    inet_ntop(AF_INET, &at.sin_addr, wanted, sizeof wanted);
    while (fgets(line, sizeof line, map))
        if (sscanf(line, "route %63s %u %u", address, &port, &arrival) == 3 && !strcmp(address, wanted) && port == ntohs(at.sin_port)) {
            at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            at.sin_port = htons(arrival);
            break;
        }
    fclose(map);
    return real(socket, (struct sockaddr *)&at, sizeof at);
}
