/* Edges of a picture (Sobel), as a container task: reads x.npy, writes y.npy, both uint8 [h, w].

   edges           interface "once": one run, from /tona/in to /tona/out
   edges serve     interface "serve": one run for each line on stdin

   Static and without a library, so that the image is this program alone. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_MAX_BYTES = 256, LINE_MAX_BYTES = 1024, HEADER_BYTES = 128, SIDE_MAX = 1 << 15 };

static const char MAGIC[] = "\x93NUMPY\x01\x00";

/* Read the picture; NULL, and why, when it is none. */
static uint8_t *read_picture(const char *folder, long *height, long *width, const char **why) {
    char path[PATH_MAX_BYTES], header[1 << 16];
    unsigned char start[10];
    snprintf(path, sizeof path, "%s/x.npy", folder);
    FILE *file = fopen(path, "rb");
    uint8_t *picture = NULL;
    *why = "the picture x.npy cannot be read";
    if (!file) return NULL;
    if (fread(start, 1, sizeof start, file) == sizeof start && !memcmp(start, MAGIC, 8)) {
        size_t length = start[8] | start[9] << 8;
        if (fread(header, 1, length, file) == length) {
            header[length] = 0;
            const char *shape = strstr(header, "'shape': (");
            if (shape && sscanf(shape, "'shape': (%ld, %ld)", height, width) == 2 &&
                *height > 2 && *width > 2 && *height <= SIDE_MAX && *width <= SIDE_MAX) {
                size_t size = (size_t)*height * *width;
                picture = malloc(size);
                if (picture && fread(picture, 1, size, file) != size) {
                    free(picture);
                    picture = NULL;
                }
            } else {
                *why = "the picture is smaller than 3x3 or larger than 32768x32768";
            }
        }
    }
    fclose(file);
    return picture;
}

static int write_picture(const char *folder, const uint8_t *picture, long height, long width) {
    char path[PATH_MAX_BYTES], header[HEADER_BYTES];
    snprintf(path, sizeof path, "%s/y.npy", folder);
    FILE *file = fopen(path, "wb");
    if (!file) return 0;
    memset(header, ' ', sizeof header);
    memcpy(header, MAGIC, 8);
    header[8] = HEADER_BYTES - 10;
    header[9] = 0;
    int length = snprintf(header + 10, sizeof header - 10,
                          "{'descr': '|u1', 'fortran_order': False, 'shape': (%ld, %ld), }",
                          height, width);
    header[10 + length] = ' ';
    header[HEADER_BYTES - 1] = '\n';
    size_t size = (size_t)height * width;
    int good = fwrite(header, 1, sizeof header, file) == sizeof header &&
               fwrite(picture, 1, size, file) == size;
    return fclose(file) == 0 && good;
}

static void find_edges(const uint8_t *in, uint8_t *out, long height, long width) {
    memset(out, 0, (size_t)height * width);
    for (long y = 1; y < height - 1; y++)
        for (long x = 1; x < width - 1; x++) {
            const uint8_t *p = in + y * width + x;
            int gx = p[-width + 1] + 2 * p[1] + p[width + 1] -
                     p[-width - 1] - 2 * p[-1] - p[width - 1];
            int gy = p[width - 1] + 2 * p[width] + p[width + 1] -
                     p[-width - 1] - 2 * p[-width] - p[-width + 1];
            int sum = abs(gx) + abs(gy);
            out[y * width + x] = sum > 255 ? 255 : sum;
        }
}

/* One run; NULL when it went well, else why not. */
static const char *run(const char *from, const char *to) {
    const char *why;
    long height, width;
    uint8_t *in = read_picture(from, &height, &width, &why);
    if (!in) return why;
    uint8_t *out = malloc((size_t)height * width);
    why = "there is no memory for the edges";
    if (out) {
        find_edges(in, out, height, width);
        why = write_picture(to, out, height, width) ? NULL : "the edges cannot be written";
    }
    free(in);
    free(out);
    return why;
}

/* Copy the string of a key out of a line that the host has written; 0 when it is not there. */
static int value(const char *line, const char *key, char *into, size_t room) {
    const char *at = strstr(line, key);
    if (!at || !(at = strchr(at + strlen(key), ':')) || !(at = strchr(at, '"'))) return 0;
    size_t length = strcspn(at + 1, "\"");
    if (length >= room) return 0;
    memcpy(into, at + 1, length);
    into[length] = 0;
    return 1;
}

static int serve(void) {
    char line[LINE_MAX_BYTES], id[64], from[128], to[128];
    while (fgets(line, sizeof line, stdin)) {
        if (!value(line, "\"id\"", id, sizeof id) || !value(line, "\"in\"", from, sizeof from) ||
            !value(line, "\"out\"", to, sizeof to))
            return 1;
        const char *why = run(from, to);
        if (why) printf("{\"id\": \"%s\", \"error\": \"%s\"}\n", id, why);
        else printf("{\"id\": \"%s\"}\n", id);
        fflush(stdout);
    }
    return 0;
}

int main(int count, char **words) {
    if (count > 1 && !strcmp(words[1], "serve")) return serve();
    const char *why = run("/tona/in", "/tona/out");
    if (why) fprintf(stderr, "%s\n", why);
    return why != NULL;
}
