/* proc.h - what /proc says of this process, read without allocating: the allocator is what is
 * measured, and it may be out of mappings. One reader at a time, and none while threads run. */
#ifndef PROC_H
#define PROC_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct lines
{
  int fd;
  size_t at, end;
  char buffer[1 << 16];
};
static struct lines lines;

static int
lines_open (const char *path)
{
  lines.fd = open (path, O_RDONLY | O_CLOEXEC);
  lines.at = lines.end = 0;
  return lines.fd >= 0;
}

static char *
lines_next (void)
{
  for (;;)
    {
      char *start = lines.buffer + lines.at;
      char *newline = memchr (start, '\n', lines.end - lines.at);
      if (newline != NULL)
        {
          *newline = '\0';
          lines.at = (size_t)(newline - lines.buffer) + 1;
          return start;
        }
      memmove (lines.buffer, start, lines.end - lines.at);
      lines.end -= lines.at;
      lines.at = 0;
      ssize_t n = read (lines.fd, lines.buffer + lines.end, sizeof lines.buffer - lines.end);
      if (n <= 0)
        {
          close (lines.fd);
          return NULL;
        }
      lines.end += (size_t)n;
    }
}

struct footprint
{
  long rss, locked, vmlck, vmas; /* bytes, bytes, bytes, mappings */
};

static struct footprint
footprint (void)
{
  struct footprint f = { 0 };
  long kb;
  char *line;
  if (lines_open ("/proc/self/smaps_rollup"))
    while ((line = lines_next ()) != NULL)
      {
        if (sscanf (line, "Rss: %ld", &kb) == 1)
          f.rss = kb * 1024;
        else if (sscanf (line, "Locked: %ld", &kb) == 1)
          f.locked = kb * 1024;
      }
  if (lines_open ("/proc/self/status"))
    while ((line = lines_next ()) != NULL)
      if (sscanf (line, "VmLck: %ld", &kb) == 1)
        f.vmlck = kb * 1024;
  if (lines_open ("/proc/self/maps"))
    while (lines_next () != NULL)
      f.vmas++;
  return f;
}

struct range
{
  uintptr_t start, end;
  int locked, undumped;
};
static struct range *ranges;
static size_t range_count;
#define RANGES_MAX ((size_t)1 << 17) /* more than vm.max_map_count lets a process have */

/* Before the allocator is let loose: it may use up the mappings that a process can have. */
static int
reserve_ranges (void)
{
  ranges = mmap (NULL, RANGES_MAX * sizeof *ranges, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return ranges != MAP_FAILED;
}

static int
read_ranges (void)
{
  if (!lines_open ("/proc/self/smaps"))
    return 0;
  range_count = 0;
  char *line;
  while ((line = lines_next ()) != NULL)
    {
      unsigned long start, end;
      if (line[0] >= 'A' && line[0] <= 'Z')
        {
          if (strncmp (line, "VmFlags:", 8) == 0 && range_count > 0)
            {
              ranges[range_count - 1].locked = strstr (line, " lo") != NULL;
              ranges[range_count - 1].undumped = strstr (line, " dd") != NULL;
            }
        }
      else if (sscanf (line, "%lx-%lx", &start, &end) == 2 && range_count < RANGES_MAX)
        ranges[range_count++] = (struct range){ start, end, 0, 0 };
    }
  return 1;
}

static const struct range *
range_of (const void *p)
{
  uintptr_t address = (uintptr_t)p;
  size_t low = 0, high = range_count;
  while (low < high)
    {
      size_t middle = (low + high) / 2;
      if (address >= ranges[middle].end)
        low = middle + 1;
      else if (address < ranges[middle].start)
        high = middle;
      else
        return &ranges[middle];
    }
  return NULL;
}

static int
is_locked (const void *p, size_t n)
{
  const struct range *first = range_of (p);
  const struct range *last = range_of ((const char *)p + n - 1);
  return first != NULL && last != NULL && first->locked && last->locked;
}

#endif
