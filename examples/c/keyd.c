/* A daemon that holds a key and answers, over a Unix socket, whether a client knows it too.
 *
 *     keyd KEYFILE SOCKET
 *
 * A client sends 32 bytes and gets "yes" or "no". SIGHUP reads the file again, SIGTERM ends. The key
 * and what clients send are in arenas only: they are locked, in no core dump, and wiped when freed. */
#include <errno.h>
#include <fcntl.h>
#include <malloc_arena.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum
{
  KEY_BYTES = 32
};

/* Reads all KEY_BYTES, by read(2): a FILE would keep what it read in a buffer of its own. */
static bool
read_key (int fd, unsigned char *key)
{
  size_t got = 0;
  while (got < KEY_BYTES)
    {
      ssize_t n = read (fd, key + got, KEY_BYTES - got);
      if (n < 0 && errno == EINTR)
        continue;
      if (n <= 0)
        return false;
      got += (size_t)n;
    }
  return true;
}

/* A new key, or NULL; never half of one. */
static unsigned char *
load (malloc_arena *keys, const char *path)
{
  unsigned char *key = malloc_arena (keys, malloc, KEY_BYTES);
  int fd = open (path, O_RDONLY | O_CLOEXEC);
  if (key == NULL || fd < 0 || !read_key (fd, key))
    {
      fprintf (stderr, "keyd: %s: no key of %d bytes\n", path, KEY_BYTES);
      free (key);
      key = NULL;
    }
  if (fd >= 0)
    close (fd);
  return key;
}

/* In a time that does not tell where they differ. */
static bool
same (const unsigned char *a, const unsigned char *b)
{
  unsigned char difference = 0;
  for (size_t i = 0; i < KEY_BYTES; i++)
    difference |= a[i] ^ b[i];
  return difference == 0;
}

static void
serve (malloc_arena *keys, int client, const unsigned char *key)
{
  unsigned char *sent = malloc_arena (keys, malloc, KEY_BYTES);
  const char *answer = sent && read_key (client, sent) && same (sent, key) ? "yes\n" : "no\n";
  free (sent);
  /* Compilers keep what they compare in vector registers, and calls leave it on the stack. */
  malloc_arena_scrub (16 << 10);
  (void)!write (client, answer, strlen (answer));
}

static int
listen_at (const char *path)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  if (strlen (path) >= sizeof address.sun_path)
    return -1;
  strcpy (address.sun_path, path);
  unlink (path);
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  umask (077);
  if (fd < 0 || bind (fd, (struct sockaddr *)&address, sizeof address) < 0 || listen (fd, 8) < 0)
    return -1;
  return fd;
}

int
main (int argc, char **argv)
{
  if (argc != 3)
    {
      fputs ("usage: keyd KEYFILE SOCKET\n", stderr);
      return 2;
    }
  /* Each block a mapping of its own: nothing that overruns a neighbour can reach the key. */
  struct malloc_arena_options options
      = { .size = sizeof options, .kind = HEAP_SECURE | HEAP_ISOLATED, .name = "keys" };
  options.lock = MALLOC_ARENA_LOCK_REQUIRE; /* no key in memory that may be swapped */
  options.limit = 1 << 20;
  malloc_arena *keys = malloc_arena_new (&options);
  if (keys == NULL)
    {
      perror ("keyd: locked memory");
      return 1;
    }
  unsigned char *key = load (keys, argv[1]);
  int listener = key ? listen_at (argv[2]) : -1;
  if (listener < 0)
    {
      if (key)
        perror (argv[2]);
      free (key);
      return 1;
    }

  sigset_t handled;
  sigemptyset (&handled);
  sigaddset (&handled, SIGHUP);
  sigaddset (&handled, SIGTERM);
  sigprocmask (SIG_BLOCK, &handled, NULL);
  signal (SIGPIPE, SIG_IGN);
  struct pollfd wait[] = { { .fd = signalfd (-1, &handled, SFD_CLOEXEC), .events = POLLIN },
                           { .fd = listener, .events = POLLIN } };
  puts ("ready");
  fflush (stdout);
  for (;;)
    {
      struct signalfd_siginfo signal_info;
      int client;
      if (poll (wait, 2, -1) < 0)
        continue;
      /* Signals first: who connects after a SIGHUP is asked for the new key. */
      if (wait[0].revents)
        {
          if (read (wait[0].fd, &signal_info, sizeof signal_info) != sizeof signal_info)
            continue;
          if (signal_info.ssi_signo == SIGTERM)
            break;
          unsigned char *fresh = load (keys, argv[1]);
          if (fresh)
            {
              free (key);
              key = fresh;
            }
        }
      else if ((client = accept (listener, NULL, NULL)) >= 0)
        {
          struct timeval patience = { .tv_sec = 5 };
          setsockopt (client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
          serve (keys, client, key);
          close (client);
        }
    }

  free (key); /* wiped, and unmapped */
  unlink (argv[2]);
  return malloc_arena_delete (keys) == 0 ? 0 : 1;
}
