// An error of the service as its caller wants to see it: the code's name, the reason to branch on, and which fields were wrong.

import { fileURLToPath } from 'node:url';

import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const DETAILS = protoLoader.loadSync(fileURLToPath(new URL('rpc_status.proto', import.meta.url)), { keepCase: true, longs: Number, defaults: true });
// What gRPC itself says when a connection or a server went away in the middle of a call.
const BROKEN = new Set([grpc.status.UNAVAILABLE, grpc.status.CANCELLED, grpc.status.INTERNAL]);

export class Refusal extends Error {
  name = 'Refusal';

  /**
   * @param {grpc.ServiceError} error what grpc-js reports: status details travel in its trailers as bytes
   */
  constructor(error) {
    super(error.details || error.message, { cause: error });
    this.code = grpc.status[error.code];
    const details = new Map(unpacked(error.metadata));
    const info = details.get('google.rpc.ErrorInfo');
    /** Stable and made for programs, for example CONCURRENT_MODIFICATION. Empty when the error does not come from Flowledger. */
    this.reason = info?.reason ?? '';
    /** What belongs to the reason, for example current_revision. */
    this.metadata = info?.metadata ?? {};
    /** For INVALID_REQUEST: every field that is wrong, each with a sentence. */
    this.violations = details.get('google.rpc.BadRequest')?.field_violations ?? [];
    const delay = details.get('google.rpc.RetryInfo')?.retry_delay;
    /** How long the server asks to wait before the next try; 0 when it does not say. */
    this.retryMilliseconds = delay ? delay.seconds * 1000 + delay.nanos / 1e6 : 0;
    /** Whether the same call may succeed later: the server went away or is stopping. */
    this.passing = this.reason ? this.code === 'UNAVAILABLE' : BROKEN.has(error.code);
  }

  toString() {
    const facts = Object.entries(this.metadata).map(([key, value]) => `${key}=${value}`);
    const fields = this.violations.map(({ field, description }) => `${field}: ${description}`);
    return [`${this.code} ${this.reason}: ${this.message}`, ...facts, ...fields].join('\n    ');
  }
}

function unpacked(metadata) {
  const [bytes] = metadata?.get('grpc-status-details-bin') ?? [];
  if (bytes === undefined) return [];
  return DETAILS['google.rpc.Status']
    .deserialize(bytes)
    .details.map(({ type_url: url, value }) => [url.slice(url.lastIndexOf('/') + 1), value])
    .filter(([type]) => type in DETAILS)
    .map(([type, value]) => [type, DETAILS[type].deserialize(value)]);
}
