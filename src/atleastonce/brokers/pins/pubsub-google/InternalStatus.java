// Google's emulator carries two releases of gRPC in one jar. A call that is cancelled, or whose client dies, asks this class of
// the older release for a method of the newer one, fails, and is never cleaned up: it goes on taking messages for nobody.
// This one has the methods of both, and comes before the jar.
package io.grpc;

public final class InternalStatus {
  private InternalStatus() {}

  public static final Metadata.Key<String> MESSAGE_KEY = Status.MESSAGE_KEY;
  public static final Metadata.Key<Status> CODE_KEY = Status.CODE_KEY;

  public static StatusRuntimeException asRuntimeException(Status status, Metadata trailers) {
    return new StatusRuntimeException(status, trailers);
  }

  public static StatusRuntimeException asRuntimeExceptionWithoutStacktrace(Status status, Metadata trailers) {
    return new InternalStatusRuntimeException(status, trailers);
  }
}
