/* replay.c - runs the fuzzer's entry without libFuzzer: on files, on all files of directories, and on
 * random inputs: replay [--random SEED COUNT] [PATH...]. */
#include "check.h"

#include <dirent.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

static uint8_t bytes[1 << 16];
static unsigned inputs;

static void
play_file (int directory, const char *name)
{
  int fd = openat (directory, name, O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    CHECK_FAIL ("%s cannot be read", name);
  ssize_t size = read (fd, bytes, sizeof bytes);
  close (fd);
  CHECK (size >= 0);
  dprintf (STDOUT_FILENO, "%s\n", name); /* the last one is the culprit */
  LLVMFuzzerTestOneInput (bytes, (size_t)size);
  inputs++;
}

static void
play (const char *path)
{
  struct stat status;
  if (stat (path, &status) != 0)
    CHECK_FAIL ("%s cannot be read", path);
  if (!S_ISDIR (status.st_mode))
    {
      play_file (AT_FDCWD, path);
      return;
    }
  DIR *directory = opendir (path);
  CHECK (directory != NULL);
  for (struct dirent *entry; (entry = readdir (directory)) != NULL;)
    if (entry->d_name[0] != '.')
      play_file (dirfd (directory), entry->d_name);
  closedir (directory);
}

static void
play_random (uint64_t seed, unsigned count)
{
  for (unsigned i = 0; i < count; i++)
    {
      uint64_t state = (seed + i) * 0x9e3779b97f4a7c15u | 1;
      size_t size = 0;
      for (; size < 600 + (seed + i) % 5 * 700; size++)
        {
          state ^= state << 13;
          state ^= state >> 7;
          state ^= state << 17;
          bytes[size] = (uint8_t)(state >> 32);
        }
      dprintf (STDOUT_FILENO, "--random %llu 1\n", (unsigned long long)(seed + i));
      LLVMFuzzerTestOneInput (bytes, size);
      inputs++;
    }
}

int
main (int argc, char **argv)
{
  for (int i = 1; i < argc; i++)
    if (strcmp (argv[i], "--random") == 0 && i + 2 < argc)
      {
        play_random (strtoull (argv[i + 1], NULL, 10), (unsigned)atoi (argv[i + 2]));
        i += 2;
      }
    else
      play (argv[i]);
  dprintf (STDOUT_FILENO, "%u inputs\n", inputs);
  return inputs == 0;
}
