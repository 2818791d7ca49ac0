package repo

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Codec says how an object's body is encoded.
type Codec uint8

// CodecNone is the content itself, CodecZstd one or more zstd frames, one after the other.
const (
	CodecNone Codec = 0
	CodecZstd Codec = 1
)

// Compressor encodes with one level. Its methods may be called from many goroutines.
type Compressor struct {
	encoder *zstd.Encoder
	extents *zstd.Encoder // frames of packs, whose content the manifest has the hash of
}

// NewCompressor takes a value of archive.compression, such as zstd:1.
func NewCompressor(setting string) (*Compressor, error) {
	levels := map[string]zstd.EncoderLevel{"zstd:1": zstd.SpeedFastest, "zstd:3": zstd.SpeedDefault,
		"zstd:7": zstd.SpeedBetterCompression, "zstd:11": zstd.SpeedBestCompression}
	level, known := levels[setting]
	if !known {
		return nil, fmt.Errorf("compression %q is unknown", setting)
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderCRC(true), zstd.WithZeroFrames(true))
	if err != nil {
		return nil, fmt.Errorf("compression %q: %w", setting, err)
	}
	extents, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderCRC(false), zstd.WithZeroFrames(true), zstd.WithWindowSize(ExtentSize))
	if err != nil {
		return nil, fmt.Errorf("compression %q: %w", setting, err)
	}
	return &Compressor{encoder, extents}, nil
}

// AppendExtent appends the content of an extent as one zstd frame to dst, without a checksum of its own.
func (c *Compressor) AppendExtent(dst, content []byte) []byte {
	return c.extents.EncodeAll(content, dst)
}

// Append appends content as one zstd frame to dst.
func (c *Compressor) Append(dst, content []byte) []byte { return c.encoder.EncodeAll(content, dst) }

// decoderMemoryMax bounds what a frame may make the decoder allocate for its window.
const decoderMemoryMax = 64 << 20

// sharedDecoder decodes frames that are wholly in memory; DecodeAll may be called from many goroutines.
var sharedDecoder = newDecoder()

// cappedDecoder decodes whole bodies into as much room as they are given, and no more.
var cappedDecoder = newDecoder(zstd.WithDecodeAllCapLimit(true))

// trustedRatio is how many times as long as its encoding a content may say that it is, to be given the room at once.
const trustedRatio = 64

func newDecoder(more ...zstd.DOption) *zstd.Decoder {
	d, err := zstd.NewReader(nil, append(more, zstd.WithDecoderMaxWindow(decoderMemoryMax))...)
	if err != nil {
		panic("repo: a zstd decoder with fixed options: " + err.Error())
	}
	return d
}

var errTooLong = errors.New("it decodes to more bytes than it says")

// decode returns at most length bytes; more in body is an error.
func (c Codec) decode(body []byte, length int64) ([]byte, error) {
	switch c {
	case CodecNone:
		if int64(len(body)) > length {
			return nil, errTooLong
		}
		return body, nil
	case CodecZstd:
		if length <= int64(len(body))*trustedRatio {
			content, err := cappedDecoder.DecodeAll(body, make([]byte, 0, length))
			if errors.Is(err, zstd.ErrDecoderSizeExceeded) {
				err = errTooLong
			}
			return content, err
		}
		reader, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderMaxWindow(decoderMemoryMax), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		defer reader.Close()
		content := bytes.NewBuffer(make([]byte, 0, int64(len(body))*trustedRatio+bytes.MinRead))
		n, err := io.Copy(content, io.LimitReader(reader, length+1))
		if err == nil && n > length {
			err = errTooLong
		}
		return content.Bytes(), err
	default:
		return nil, fmt.Errorf("codec %d is unknown", uint8(c))
	}
}

// decodeFrame decodes one extent of known length.
func decodeFrame(frame []byte, length int) ([]byte, error) {
	var header zstd.Header
	if err := header.Decode(frame); err != nil {
		return nil, err
	}
	if header.HasFCS && header.FrameContentSize != uint64(length) {
		return nil, errTooLong
	}
	content, err := sharedDecoder.DecodeAll(frame, make([]byte, 0, length))
	if err == nil && len(content) != length {
		err = errTooLong
	}
	return content, err
}
