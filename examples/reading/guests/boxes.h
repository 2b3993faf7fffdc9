/* From the detector's probability map to rotated boxes of text lines.
 *
 * The post-processing of DB (Liao et al., "Real-time Scene Text Detection with Differentiable
 * Binarization", AAAI 2020) with the settings of PP-OCRv4: threshold, grow by a pixel, connected
 * components, rectangle of least area around each, mean probability inside as its score, grow the
 * rectangle by the inverse of the shrinking that the detector was trained on.
 */
#ifndef TONA_BOXES_H
#define TONA_BOXES_H

#include "image.h"

#define MAP_THRESHOLD 0.3f
#define BOX_MIN_SCORE 0.5
#define UNCLIP_RATIO 1.6
#define MIN_SIDE_BEFORE 3.0
#define MIN_SIDE_AFTER 5.0
enum { MAX_CANDIDATES = 1000 };

typedef struct {
    double x;
    double y;
} Point;

/* Corners in ring order. */
typedef struct {
    Point corner[4];
    double short_side;
    double long_side;
} Rectangle;

typedef struct {
    const float *at;
    int width;
    int height;
} Map;

/* Pixels x0..x1 of row y, part of the component of run `parent`. */
typedef struct {
    int32_t y;
    int32_t x0;
    int32_t x1;
    int32_t parent;
} Run;

static inline double cross(Point o, Point a, Point b) {
    return (a.x - o.x) * (b.y - o.y) - (a.y - o.y) * (b.x - o.x);
}

/* Convex hull of points sorted by y, then x (Andrew's monotone chain); `hull` has room for 2n. */
static inline int convex_hull(const Point *points, int n, Point *hull) {
    int size = 0;
    for (int i = 0; i < n; i++) {
        while (size >= 2 && cross(hull[size - 2], hull[size - 1], points[i]) <= 0) size--;
        hull[size++] = points[i];
    }
    int base = size + 1;
    for (int i = n - 2; i >= 0; i--) {
        while (size >= base && cross(hull[size - 2], hull[size - 1], points[i]) <= 0) size--;
        hull[size++] = points[i];
    }
    return n > 1 ? size - 1 : size;
}

/* The rectangle of least area around a convex hull that was grown by `pad` all round. One of its
 * sides lies along a side of the hull. */
static inline Rectangle least_rectangle(const Point *hull, int n, double pad) {
    Rectangle best = {.short_side = 0};
    double best_area = __builtin_inf();
    for (int i = 0; i < n; i++) {
        Point from = hull[i], to = hull[i + 1 < n ? i + 1 : 0];
        double dx = to.x - from.x, dy = to.y - from.y, length = __builtin_sqrt(dx * dx + dy * dy);
        if (length == 0) continue;
        double ux = dx / length, uy = dy / length;
        double low_u = __builtin_inf(), high_u = -low_u, low_v = low_u, high_v = -low_u;
        for (int k = 0; k < n; k++) {
            double u = hull[k].x * ux + hull[k].y * uy, v = hull[k].y * ux - hull[k].x * uy;
            low_u = __builtin_fmin(low_u, u), high_u = __builtin_fmax(high_u, u);
            low_v = __builtin_fmin(low_v, v), high_v = __builtin_fmax(high_v, v);
        }
        low_u -= pad, high_u += pad, low_v -= pad, high_v += pad;
        double a = high_u - low_u, b = high_v - low_v;
        if (a * b >= best_area) continue;
        best_area = a * b;
        best.short_side = __builtin_fmin(a, b);
        best.long_side = __builtin_fmax(a, b);
        for (int k = 0; k < 4; k++) {
            double u = k == 0 || k == 3 ? low_u : high_u, v = k < 2 ? low_v : high_v;
            best.corner[k] = (Point){u * ux - v * uy, u * uy + v * ux};
        }
    }
    return best;
}

static inline int32_t root_of(Run *runs, int32_t i) {
    while (runs[i].parent != i) i = runs[i].parent = runs[runs[i].parent].parent;
    return i;
}

/* A pixel is set when it or its upper, left or upper left neighbour passes the threshold: the
 * 2x2 dilation that joins letters lying a pixel apart. */
static inline void threshold_row(const Map *map, int y, uint8_t *above, uint8_t *here,
                                 uint8_t *set) {
    const float *row = map->at + (size_t)y * map->width;
    for (int x = 0; x < map->width; x++) here[x] = row[x] > MAP_THRESHOLD;
    set[0] = here[0] | above[0];
    for (int x = 1; x < map->width; x++)
        set[x] = here[x] | here[x - 1] | above[x] | above[x - 1];
}

/* Joins the runs of a row with those of the row above that touch them, corners included. */
static inline void join_rows(Run *runs, int32_t above, int32_t here, int32_t end) {
    for (int32_t i = here; i < end; i++) {
        while (above < here && runs[above].x1 + 1 < runs[i].x0) above++;
        for (int32_t k = above; k < here && runs[k].x0 <= runs[i].x1 + 1; k++) {
            int32_t a = root_of(runs, k), b = root_of(runs, i);
            if (a < b) runs[b].parent = a;
            else runs[a].parent = b;
        }
    }
}

/* The runs of all set pixels, in scan order; the count is -1 when there is no memory. */
static inline Run *find_runs(const Map *map, int32_t *count) {
    int width = map->width;
    uint8_t *above = take((uint64_t)width), *here = take((uint64_t)width);
    uint8_t *set = take((uint64_t)width + 1);
    uint64_t room = (uint64_t)map->height * ((uint64_t)width / 2 + 1);
    Run *runs = take(room * sizeof(Run));
    *count = -1;
    if (!above || !here || !set || !runs) return 0;
    __builtin_memset(above, 0, (size_t)width);
    set[width] = 0;
    int32_t n = 0, row_before = 0;
    for (int y = 0; y < map->height; y++) {
        int32_t row = n;
        threshold_row(map, y, above, here, set);
        for (int x = 0; x < width; x++) {
            if (!set[x]) continue;
            int start = x;
            while (set[x]) x++;
            runs[n] = (Run){y, start, x - 1, n};
            n++;
        }
        join_rows(runs, row_before, row, n);
        row_before = row;
        uint8_t *swap = above;
        above = here, here = swap;
    }
    *count = n;
    return runs;
}

/* Widens the span of each row that the line from a to b crosses (Bresenham). */
static inline void trace_edge(int32_t (*span)[2], int ax, int ay, int bx, int by) {
    int dx = bx > ax ? bx - ax : ax - bx, dy = by > ay ? ay - by : by - ay;
    int step_x = ax < bx ? 1 : -1, step_y = ay < by ? 1 : -1, error = dx + dy;
    for (;;) {
        if (ax < span[ay][0]) span[ay][0] = ax;
        if (ax > span[ay][1]) span[ay][1] = ax;
        if (ax == bx && ay == by) return;
        int twice = 2 * error;
        if (twice >= dy) error += dy, ax += step_x;
        if (twice <= dx) error += dx, ay += step_y;
    }
}

/* Mean of the map over a rectangle, its outline included; `span` has room for every row. */
static inline double mean_inside(const Map *map, const Rectangle *box, int32_t (*span)[2]) {
    int x[4], y[4], top = map->height - 1, bottom = 0;
    for (int k = 0; k < 4; k++) {
        x[k] = clamp_int((int)__builtin_floor(box->corner[k].x + 1e-4), 0, map->width - 1);
        y[k] = clamp_int((int)__builtin_floor(box->corner[k].y + 1e-4), 0, map->height - 1);
        top = min_int(top, y[k]), bottom = max_int(bottom, y[k]);
    }
    for (int row = top; row <= bottom; row++) span[row][0] = map->width, span[row][1] = -1;
    for (int k = 0; k < 4; k++) trace_edge(span, x[k], y[k], x[(k + 1) % 4], y[(k + 1) % 4]);
    double sum = 0, count = 0;
    for (int row = top; row <= bottom; row++) {
        const float *values = map->at + (size_t)row * map->width;
        for (int at = span[row][0]; at <= span[row][1]; at++) sum += values[at];
        count += span[row][1] - span[row][0] + 1;
    }
    return sum / count;
}

/* The training shrank each line by area/perimeter; this grows it back. The corners fall on whole
 * pixels first, as in the models' own pipeline. */
static inline Rectangle unclip(const Rectangle *box) {
    Point ring[4], hull[8];
    double area = box->short_side * box->long_side;
    double around = 2 * (box->short_side + box->long_side);
    for (int k = 0; k < 4; k++) {
        ring[k] = (Point){__builtin_trunc(box->corner[k].x + 1e-4),
                          __builtin_trunc(box->corner[k].y + 1e-4)};
        for (int i = k; i > 0; i--) {
            Point a = ring[i - 1], b = ring[i];
            if (a.y < b.y || (a.y == b.y && a.x <= b.x)) break;
            ring[i - 1] = b, ring[i] = a;
        }
    }
    int n = convex_hull(ring, 4, hull);
    return least_rectangle(hull, n, area * UNCLIP_RATIO / around);
}

/* Outer points of a component: both ends of each of its runs, in scan order. `next` chains runs. */
static inline int collect(const Run *runs, const int32_t *next, int32_t first, Point *points) {
    int n = 0;
    for (int32_t i = first; i >= 0; i = next[i]) {
        points[n++] = (Point){runs[i].x0, runs[i].y};
        if (runs[i].x1 > runs[i].x0) points[n++] = (Point){runs[i].x1, runs[i].y};
    }
    return n;
}

/* Boxes in map coordinates, in scan order of their components; returns how many, -1: no memory. */
static inline int find_boxes(const Map *map, Rectangle *boxes) {
    int32_t count;
    Run *runs = find_runs(map, &count);
    if (count < 0) return -1;
    int32_t *next = take((uint64_t)count * sizeof(int32_t));
    int32_t *last = take((uint64_t)count * sizeof(int32_t));
    Point *points = take((uint64_t)count * 2 * sizeof(Point));
    Point *hull = take((uint64_t)count * 4 * sizeof(Point));
    int32_t(*span)[2] = take((uint64_t)map->height * sizeof *span);
    if (!next || !last || !points || !hull || !span) return -1;
    for (int32_t i = 0; i < count; i++) {
        int32_t root = root_of(runs, i);
        next[i] = -1;
        if (root != i) next[last[root]] = i;
        last[root] = i;
    }
    int found = 0, candidates = 0;
    for (int32_t i = 0; i < count && candidates < MAX_CANDIDATES; i++) {
        if (runs[i].parent != i) continue;
        candidates++;
        int n = convex_hull(points, collect(runs, next, i, points), hull);
        Rectangle box = least_rectangle(hull, n, 0);
        if (box.short_side < MIN_SIDE_BEFORE) continue;
        if (mean_inside(map, &box, span) < BOX_MIN_SCORE) continue;
        box = unclip(&box);
        if (box.short_side >= MIN_SIDE_AFTER) boxes[found++] = box;
    }
    return found;
}

#endif
