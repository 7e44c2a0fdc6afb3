// An authorization server on loopback, made of oidc-provider: `node server.mjs SETTINGS`, a JSON file.
//
// Besides the server's own endpoints there are two for the tests: /test/pid says which process answers, and /test/log
// what the token endpoint granted and refused.

import { X509Certificate, generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createSecureServer } from 'node:https';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const settings = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const { default: Provider } = await import(pathToFileURL(join(settings.library, 'lib', 'index.js')));

const secure = settings.tls !== undefined;
const issuer = `${secure ? 'https' : 'http'}://127.0.0.1:${settings.port}`;
const lifetime = (ctx, token, client) => client.lifetime ?? 3600;
const peer = (ctx) => {
  const shown = ctx.socket.getPeerCertificate?.();
  return shown?.raw && new X509Certificate(shown.raw);
};
const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });

const provider = new Provider(issuer, {
  clients: settings.clients,
  extraClientMetadata: { properties: ['lifetime'] },
  scopes: ['openid', 'offline_access', 'read', 'write'],
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig' }] },
  cookies: { keys: ['of-a-test'] },
  rotateRefreshToken: true,
  ttl: { AccessToken: lifetime, ClientCredentials: lifetime },
  clientAuthMethods: [
    'client_secret_basic', 'client_secret_post', 'client_secret_jwt', 'private_key_jwt', 'none',
    ...(secure ? ['tls_client_auth', 'self_signed_tls_client_auth'] : []),
  ],
  enabledJWA: { clientAuthSigningAlgValues: ['HS256', 'RS256', 'ES256'] },
  features: {
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    revocation: { enabled: true },
    devInteractions: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      useGrantedResource: () => true,
      getResourceServerInfo: (ctx, resource, client) => ({
        scope: 'read write',
        audience: resource,
        accessTokenFormat: 'jwt',
        accessTokenTTL: client.lifetime,
      }),
    },
    mTLS: {
      enabled: secure,
      certificateBoundAccessTokens: true,
      selfSignedTlsClientAuth: true,
      tlsClientAuth: true,
      getCertificate: peer,
      certificateAuthorized: (ctx) => ctx.socket.authorized,
      certificateSubjectMatches: (ctx, property, expected) =>
        property === 'tls_client_auth_san_dns' && peer(ctx).checkHost(expected, { subject: 'never' }) !== undefined,
    },
  },
});

const log = [];
const note = (ctx, error) => log.push({
  client: ctx.oidc.client?.clientId ?? null,
  grant: ctx.oidc.params?.grant_type ?? null,
  error: error?.error ?? null,
  detail: error?.error_detail ?? null,
  rotations: ctx.oidc.entities.RefreshToken?.rotations ?? 0,
});
provider.on('grant.success', (ctx) => note(ctx));
provider.on('grant.error', note);
provider.on('server_error', (ctx, error) => console.error(error));

const own = { '/test/pid': () => process.pid, '/test/log': () => log };
const answer = provider.callback();
const serve = (request, response) => {
  const asked = own[request.url];
  if (request.url.startsWith('/.well-known/')) {
    request.url = request.url === `/.well-known/${settings.metadata}` ? '/.well-known/openid-configuration' : '/none';
  }
  if (asked === undefined) {
    answer(request, response);
  } else {
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify(asked()));
  }
};
const files = (names) => Object.fromEntries(Object.entries(names).map(([name, path]) => [name, readFileSync(path)]));
const server = secure
  ? createSecureServer({ ...files(settings.tls), requestCert: true, rejectUnauthorized: false }, serve)
  : createServer(serve);
server.listen(settings.port, '127.0.0.1', () => console.log(`listening: ${issuer}`));
